"""Why a claim is not supported on the testbed, for each claim that is not."""

REASONS = {
    "fig01.reverse": "As for figure 5.",
    "fig03.comparable": (
        "The RL'd-base teacher is the weaker one, by 0.03; an interval over 240 problems does not "
        "exclude 0.05. What figure 2 shows, it shows of the weaker teacher."
    ),
    "fig05.small": (
        "It ends 0.08 below the pre-RL level: further than nothing, and whether by less than 0.1 "
        "is not told. The fall itself, by 0.44, is beyond doubt."
    ),
    "fig05.large": (
        "It ends 0.14 below the pre-RL level, by 0.09 to 0.19 over five seeds: past it, and "
        "whether by less than 0.1 is not told."
    ),
    "fig06.stronger": (
        "By 0.17; 240 problems, four samples each, do not exclude 0.14. It is stronger beyond "
        "doubt; by how much is open."
    ),
    "fig06.overlap": (
        "It rises by 0.057 on average over five RL teachers, by 0.047 to 0.066 under each. That it "
        "rises is beyond doubt; that it does by 0.05 is not. With one teacher the interval was "
        "four times narrower."
    ),
    "fig07.dip": (
        "The overlap ratio of this run rises from the first step (0.82 to 0.94): training on "
        "the tokens of one list alone, which hold 4 % of the student's mass, aligns the "
        "lists."
    ),
    "fig07.recovers": ("Without a dip there is nothing to recover from."),
    "fig08.gap_start": (
        "The cold start samples its teacher at temperature 0.7 and top-p 0.95, so the student "
        "it makes is sharper (0.32 nats) than the teacher is at temperature 1 (0.74); the base "
        "student errs on the other side (1.03), and by less."
    ),
    "fig08.adds": (
        "Distillation adds nothing to the cold start: it begins 0.39 above the base student, and "
        "stays there for the 48 steps."
    ),
    "fig08.smoother": (
        "Beyond what drawing other prompts explains, neither curve changes from step to step."
    ),
    "fig09.accuracy_other": (
        "In the other wording neither run answers one problem in a hundred, before training or "
        "after: at this floor no test can tell them apart, and the interaction above is the first "
        "difference alone."
    ),
    "fig10.accuracy": (
        "By 0.027; an interval from 0.013 to 0.042 does not exclude 0.02. That it is better on the "
        "teacher's own kind of problems is beyond doubt, by how much is open."
    ),
    "fig10.accuracy_other": (
        "On problems like the other prompts, training on those is better, by 0.03: which prompts "
        "help depends on what is tested."
    ),
    "fig10.entropy": (
        "Entropy is lower on the teacher's prompts, by less than the test asks: most of it is "
        "in the wording, which is the same for both sets."
    ),
    "fig11.long": (
        "The five RL teachers' students end between 0.68 and 0.85 at any length; from seed to seed "
        "length 4 ends between 0.01 behind the longest and 0.08 before it. 0.02 cannot be told "
        "from 0 with five seeds."
    ),
    "fig11.short": (
        "From 0.07 behind to 0.06 before it: the first two tokens decide which of its two ways of "
        "answering the student takes, so that two tokens teach most of what there is to learn here."
    ),
    "fig11.gain_start": (
        "By 0.09, between none and 0.15 from seed to seed. Only rollouts that reach the deepest "
        "prefix are compared, and these work step by step already; over all rollouts it was 0.37."
    ),
    "fig11.gain_falls": (
        "It falls in four of five seeds, by 0.01 for each doubling of the prefix; the interval "
        "over seeds ends at 0. The fall of 0.36 that the earlier design showed came from comparing "
        "other rollouts at each depth."
    ),
    "fig11.gain_ends": ("As above: there is 0.09 to lose, and 0.04 of it is lost."),
    "fig12.collapse": (
        "The overlap ratio ends within 0.0005 of its highest in every seed. The task is over "
        "after some 130 tokens, and a response cannot wander off for thousands more."
    ),
    "fig12.gradient": (
        "They are smaller, by a third: a step of long responses averages over more states."
    ),
    "fig13.end_first": (
        "By 10 % in the last quarter of a response, 1 to 16 % from seed to seed: higher, and less "
        "than the fifth that the test asks."
    ),
    "fig13.end_first_position": (
        "By 23 % over late positions, which only long responses reach; the interval over seeds "
        "begins at 10 %. Within responses it is less (above)."
    ),
    "fig13.moves_forward": (
        "Entropy is higher at the end throughout; it does not spread forward within 48 steps."
    ),
    "fig23.moves_forward": ("As for figure 13."),
    "fig15.sampled_close": (
        "The sampled token is 0.056 behind k = 16 over training, by 0.042 to 0.069: behind for "
        "sure, and whether by less than 0.05 is not told."
    ),
    "fig16.k1_unstable": (
        "Spikes are twice as large with k = 1 on average, 1.3 to 3.5 times from seed to seed: "
        "larger in each of five, and not surely by half."
    ),
    "fig16.entropy_spike": (
        "Larger in each of five seeds, by 7 % to a factor of two; the interval over seeds reaches "
        "below 1."
    ),
    "fig19.loss_end": (
        "The success's loss falls, that of the failure stays: a twelfth of the success's at the "
        "beginning, four times as large at the end."
    ),
    "fig19.grad_norm_end": (
        "As for the loss: gradients of the failing run are the smaller ones at the beginning and "
        "five times as large at the end. Whoever looks for small ones at the end is misled."
    ),
    "fig21.steadier": ("As for figure 8: beyond the noise of sampling there is no unrest."),
    "fig20.recovery": (
        "The RL'd larger teacher is better than the student by 0.03 only: a larger model names "
        "totals at once about as well as it sums, so that RL changes its pattern and hardly its "
        "accuracy. There is no gap to recover: where the gap is not clearly above 0.05, "
        "opdprobe.gap_recovery gives none, and this number is noise."
    ),
    "fig20.failure": ("A ratio to that recovery, and undefined with it."),
    "fig20.stronger": ("The still larger teacher is better by 0.07: by less than the test asks."),
    "fig20.advantage_flat": (
        "To 0.4 of its beginning in two seeds, to 0.8 in three: it comes closer to zero, and "
        "whether by more than half is not told."
    ),
    "selection.template": (
        "In the teacher's wording it ends at 0.88 on the teacher's own kind of problems, against "
        "0.79 without a selection, and at 0.37 on other problems, against 0.56. The mean over all "
        "tests, half of which are in a wording that nobody answers, is behind by 0.02."
    ),
    "selection.content": (
        "It ends at 0.75 on the teacher's own kind of problems, against 0.79 without a selection, "
        "and at 0.71 on other problems, against 0.56: for the mean, 0.01 with an interval on both "
        "sides of 0."
    ),
    "selection.mixed": (
        "As for the template: 0.89 against 0.79 on the teacher's own kind of problems, 0.41 "
        "against 0.56 on others, where the seeds differ too much to tell (−0.32 to 0.04)."
    ),
    "selection.max_divergence": (
        "As for the template: 0.88 against 0.79 on the teacher's own kind of problems, 0.37 "
        "against 0.56 on others. A selection looks best to whoever tests on what it selects."
    ),
    "selection.template_own": (
        "On other problems the template costs 0.19 in its own wording, and nothing in the other, "
        "in which every run answers less than 5 % of the problems: there is nothing to lose there."
    ),
    "selection.content_own": (
        "The test is in the other wording, in which every run answers less than 5 % of the "
        "problems: at this floor nothing can differ."
    ),
    "selection.entropy": (
        "With 30 % of other prompts the student's entropy is higher by 2 % in four of five seeds "
        "(0.3 % lower in one): whether at all is not told."
    ),
    "rates.non_overlap": (
        "At four times the usual rate the non-overlap support ends at 0.89, above the student's "
        "top-k at its usual rate (0.86; other rates of it were not tried). Figure 7 is about one "
        "rate: tokens that hold 4 % of the student's mass give small gradients, which a higher "
        "rate makes up for."
    ),
    "rates.k1": (
        "At four times the usual rate k = 1 ends at 0.85, as high as k = 16 at its usual rate "
        "(other rates of it were not tried), with an interval of 0.04 on both sides."
    ),
    "fig25.entropy_suffices": (
        "It ends 0.17 behind, and 0.07 behind a random fifth. Here the signal lies where the "
        "student is sure and differs: before training a quarter of the fifth with the largest "
        "reverse KL is not in the fifth with the highest entropy, and holds 45 % of all of it."
    ),
    "fig25.tip_suffices": (
        "It ends 0.07 behind, by 0.04 to 0.10: behind for sure, and whether by less than 0.05 is "
        "not told. It is slower rather than lower: at the last step it is behind by 0.02. Its "
        "score counts where the student is merely unsure, too."
    ),
    "fig25.early_suffices": (
        "By 0.02 behind on average, from 0.07 behind to 0.02 before it: five seeds cannot tell."
    ),
    "fig25.random_suffices": (
        "Over the last quarter it is 0.10 behind: what fewer tokens cost. At the last step it is "
        "behind by 0.02 in four seeds, and by 0.15 in one: it is slower rather than lower."
    ),
    "fig25.entropy_chosen": "It teaches less than a random fifth, by 0.07.",
    "fig25.tip_chosen": (
        "By 0.03, between −0.02 and 0.08: half of its score is the entropy, whose tokens teach "
        "less than random ones."
    ),
    "fig25.teachability_chosen": (
        "By 0.09, more than 0 beyond doubt; the interval begins at 0.048, a little below the 0.05 "
        "that the test asks."
    ),
    "fig25.early_chosen": (
        "By 0.08, more than 0 beyond doubt; the interval begins at 0.03, below the 0.05 that the "
        "test asks."
    ),
    "fig25.reward_chosen": (
        "It does as a random fifth does. Where the teacher likes the drawn token better, hardly "
        "any of the divergence is: 17 % before training."
    ),
    "fig25.tip_better": (
        "Half of the tokens by TIP ends no higher than all of them. With all, the student ends "
        "0.07 below its teacher, so that there is little room for better by 0.05."
    ),
    "fig25.tip_half": (
        "By 0.02 behind, from 0.0503 behind to 0.01 before it: the interval ends 0.0003 beyond the "
        "limit. At the last step both are at 0.89."
    ),
    "fig25.random_half": (
        "By 0.05 behind, from 0.02 to 0.07: behind for sure, and whether by less than 0.05 is not "
        "told."
    ),
    "fig26.entropy_kept": (
        "The other four fifths end at 0.82, this one at 0.69: most of the signal is outside it."
    ),
    "fig26.entropy_needed": "By 0.03, between −0.01 and 0.07: not told, and at most a little.",
    "fig26.entropy_speed": (
        "Over training it is behind by 0.07, from 0.05 to 0.08: more slowly for sure, and whether "
        "by more than 0.05 is not told: the interval begins at 0.0499."
    ),
    "fig26.tip_speed": (
        "Over training it is behind by 0.04, from 0.03 to 0.05: more slowly for sure, and by less "
        "than 0.05 or not is not told."
    ),
    "fig27.nothing": (
        "0.04, between 0.01 and 0.08: a tenth of what the success has (0.58 and 0.20), and whether "
        "it is less than 0.05 is not told."
    ),
    "fig27.chance": (
        "2.8 times, from 1.3 to 4.8 from seed to seed: 24 prompts with a few long gradients among "
        "them tell it badly. Of the success 6 and 12 times of it survive."
    ),
    "fig27.spectrum": "By 0.10, between 0.04 and 0.15: it is larger; by 0.05 or not is not told.",
    "fig27.large": (
        "0.36 of the other's, between 0.14 and 0.58: smaller, and not small. Later they are larger "
        "than those of the success, which has learnt what there was."
    ),
    "fig27.large_later": (
        "1.3 of those at the start on average, 0.3 to 2.2 from seed to seed: a few tokens have "
        "most of the norm, and two of each response are measured."
    ),
    "fig27.divergence": (
        "It is a tenth of the other's (9 %). A small divergence is therefore an explanation, too: "
        "this teacher has less to say, and says it in no common direction."
    ),
    "fig27.family": (
        "By 0.01, between −0.05 and 0.07, though the teacher after RL teaches (figure 4): before "
        "training its gradients have 0.05 in common, and at step 96 all is learnt. A common "
        "direction is not what teaching takes."
    ),
    "fig27.family_nothing": (
        "0.03, between −0.03 and 0.10; four seeds have −0.01 to 0.01, one has 0.16."
    ),
    "fig28.aligned": (
        "By 0.13, between 0.01 and 0.24: it points to success, and whether by a cosine of 0.1 is "
        "not told. Twelve samples for each token leave noise: a gradient without fault would have "
        "roughly 0.7."
    ),
    "fig28.aligned_failing": (
        "By 0.12, between 0.06 and 0.17: it does point to success, as much as the other; whether "
        "by less than 0.1 is not told."
    ),
    "fig28.better": (
        "By 0.01, between −0.16 and 0.17: its sign changes from seed to seed, and five of them do "
        "not tell which one points to success more."
    ),
    "fig28.harm": (
        "In 41 % of the states, from 34 to 49 %, as measured. The noise of twelve samples pulls "
        "this share towards a half, though: the ideal directions of two halves of them contradict "
        "each other in 32 % of the states. Whether it is a third without noise is not told."
    ),
    "fig28.information_to_error": (
        "0.02, between −0.10 and 0.13: little at most, and whether anything is not told."
    ),
    "fig28.early": (
        "0.23, between 0.09 and 0.36: there is a relation, and whether by 0.1 is not told."
    ),
    "fig28.early_signal": (
        "0.25, between 0.08 and 0.42: there is a relation, and whether by 0.1 is not told."
    ),
    "fig28.reward": (
        "If anything the other way round: −0.07. The reward is of one token, the drawn one; the "
        "direction is of all."
    ),
}

DOUBTS = {
    "fig27.cancel": (
        "The failing pair was known before training, and one of the five others. That directions "
        "differ does not say that this is why nothing is learnt: the divergence differs, too "
        "(above), and a pair of the second family learns with a cosine of 0.05."
    ),
    "fig28.harm_failing": (
        "The noise of twelve samples pulls this share towards a half: the ideal directions of two "
        "halves of them contradict each other in 32 % of the states. What it is without noise is "
        "not told."
    ),
    "fig28.entropy": (
        "Under this teacher. Under the larger one the correlation is −0.25: entropy finds the "
        "states where this RL'd teacher is right, not those where a teacher is."
    ),
    "fig28.tip": "Under this teacher; under the larger one it is −0.15, as for entropy.",
    "fig28.reverse_kl": (
        "The ideal direction of half of the samples has 0.26 with that of the other half: part of "
        "it is that success depends on the token where the models differ."
    ),
    "fig25.reverse_kl_suffices": (
        "At one learning rate, on one task. Also: a fifth does as well in as many steps, which "
        "saves nothing, since the tokens are scored to be chosen."
    ),
    "fig26.reverse_kl_needed": (
        "In 48 steps and at one learning rate. Figure 7's lesson may hold here: what teaches more "
        "slowly may still arrive."
    ),
    "fig07.non_overlap": (
        "At the one rate of this figure. At four times that rate the non-overlap support ends "
        "higher than the student's top-k does here (the sweep of learning rates, below): it "
        "teaches more slowly, not less."
    ),
    "fig11.sweet_spot": (
        "If the length made no difference, the best of the six would lie at random, and this test "
        "would be passed in 74 % of such sets of five seeds (simulated). The differences to both "
        "ends are inconclusive, so there is no evidence of a sweet spot."
    ),
    "fig15.k1_worse": (
        "At the one rate of this figure. At four times that rate k = 1 ends as high as k = 16 does "
        "here (the sweep of learning rates, below)."
    ),
    "fig09.interaction": (
        "In the other wording every run answers less than one problem in a hundred, so that its "
        "half of the difference could be nothing but 0. It is no evidence that the wording helps "
        "only where it is tested."
    ),
}
"""What a supported claim does not show, though its number passes the test."""
