"""The wording of the testbed: paraphrases that carry style but no arithmetic."""

OPERATORS = tuple(
    "plus and with append adding including joining combining besides alongside counting taking "
    "bringing putting onto over atop extra further more another also too topped raised increased "
    "joined merged paired grouped united pooled".split()
)
COPULAS = tuple(
    "is makes gives equals yields becomes totals reaches produces means returns leaves brings "
    "forms delivers shows reads outputs hits lands amounts comes results sums ends arrives runs "
    "goes gets does builds creates".split()
)
STYLE = tuple(
    "okay well now so then next hence thus alright fine good great right sure yes hmm first "
    "second third finally lastly again still onward forward ahead moving going continuing "
    "proceeding working looking thinking checking noting seeing knowing using holding keeping "
    "carefully slowly quickly gently calmly simply plainly clearly surely certainly definitely "
    "naturally obviously evidently apparently presumably probably possibly perhaps maybe "
    "basically essentially really truly actually indeed exactly precisely roughly nearly almost "
    "mostly mainly chiefly largely partly fully wholly entirely completely totally quite rather "
    "fairly pretty very just only even merely barely hardly soon later afterwards meanwhile "
    "presently currently today here there everywhere somewhere therefore consequently accordingly "
    "thereby whereupon thereafter subsequently eventually ultimately overall altogether together "
    "jointly likewise similarly equally conversely instead otherwise however nevertheless "
    "nonetheless anyway anyhow somehow meantime moreover furthermore additionally lovely nice "
    "neat cool super perfect excellent wonderful splendid brilliant marvellous superb easy smooth "
    "tidy clean clear plain simple direct brief quick swift rapid steady stable solid firm sound "
    "safe careful cautious patient calm quiet cheerful glad happy eager keen ready set done "
    "settled sorted fixed noted agreed granted given seen known understood recorded written "
    "marked stored kept held saved".split()
)
