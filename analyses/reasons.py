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
    "fig12.collapse": (
        "Responses of 160 tokens are unreliable at their end, and cost accuracy on long "
        "problems (figure 11), but no run collapses: the task is over after some 130 tokens, "
        "and a response cannot wander off for thousands more."
    ),
    "fig12.gradient": (
        "It is smaller on average, with an interval that reaches 1; a step of long responses "
        "averages over more states."
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
        "The RL'd larger teacher is better than the student by 0.05 only: a larger model names "
        "totals at once about as well as it sums, so that RL changes its pattern and hardly its"
        " accuracy. The signature in the overlap shows; there is no gap to recover: a gap that is "
        "not clearly above 0.05 has no recovery (opdprobe.gap_recovery), and this number is noise."
    ),
    "fig20.failure": ("A ratio to that recovery, and undefined with it."),
    "fig20.stronger": ("The still larger teacher is better by less than the test asks."),
    "selection.content": (
        "Both sets are in the unseen wording here, and with it the longer problems that the "
        "teacher was not trained on teach a little more. Why, these runs do not tell."
    ),
    "selection.entropy": (
        "With 30 % of other prompts the student's entropy ends where it does without (0.68 nats): "
        "the two kinds of prompts differ in depth, not in the entropy of their wording."
    ),
}

DOUBTS = {
    "fig09.interaction": (
        "In the other wording every run answers less than one problem in a hundred, so that its "
        "half of the difference could be nothing but 0. It is no evidence that the wording helps "
        "only where it is tested."
    ),
}
"""What a supported claim does not show, though its number passes the test."""
