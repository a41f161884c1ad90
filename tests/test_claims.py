"""What every study concludes of records that follow exact laws: those of its claim, and others.

What the claim says must come out supported, and a law of another exponent, sign or order contradicted. A pattern names
the findings, as `quantity | source`, that a law supports; it contradicts the rest.
"""

import re

import laws
import pytest

from nfd_jax import studies
from nfd_jax.verdict import Verdict

EVERYTHING, NOTHING = "", "(?!)"
EXCHANGED = {"depth_mup": 0.0, "depth_mup_corrected": -0.5}


SLOWER = "squared loss|h_t - h_0 ~ n\\^p at eta ~ n\\^-0.25"  # where much less than counting has would do
INNER_AS_WELL = "inner matrices' part|depth-muP, untied, L = 256"


def grown(expected, depths):
    """Changes that grow with depth, of which the inner matrices have a share that vanishes, as untied ones do."""
    rows = {"change, depth-muP": depths, "change, corrected": depths * (1 + 3 * depths**-0.5)}
    return expected | rows


CASES = {
    "width": (laws.width, {}, EVERYTHING),
    "width, 1/n each": (laws.width, {"each": -1.0, "mean": -2.0}, NOTHING),
    "width, n^-1/2 in the mean": (laws.width, {"mean": -0.5}, "one network"),
    "width, growing": (laws.width, {"each": 0.5, "mean": 1.0}, NOTHING),
    "depth": (laws.depth, {}, EVERYTHING),
    "depth, from below": (laws.depth, {"sign": -1}, EVERYTHING),
    "depth, L^-1/2": (laws.depth, {"power": -0.5}, NOTHING),
    "depth, L^-2": (laws.depth, {"power": -2.0}, NOTHING),
    "depth, growing": (laws.depth, {"power": 1.0}, NOTHING),
    "reuse, one sign": (
        laws.reuse_of,
        {},
        r"at init|TP6, DHT|one sign$|all blocks|survives|delta\(T\)|\|a_l\| ~ L\^-2 by one block",
    ),
    "reuse, random signs": (
        laws.reuse_of,
        {"block": -2.0, "sign": 0.5, "gap": -1.0, "below": -1.0, "near": -1.0, "n_power": -1.0}
        | {"time": 1.0, "closed": 0.0},
        r"at init|if \|a_l\| ~ L\^-2$|random signs$|a_l\^2 ~ L\^-2 by one block|\| NFD$",
    ),
    "independence": (laws.independence_of, {}, "(?<!TP6, DHT)$"),
    "independence, otherwise": (laws.independence_of, {"held": (0.1, 0.5), "lost": (0.05, -1.0)}, NOTHING),
    "independence, a constant": (laws.independence_of, {"held": (0.01, 0.0)}, "loss over initial|plain|, muP|DHT$"),
    "degeneracy": (laws.degeneracy_of, {}, EVERYTHING),
    "degeneracy, lost": (laws.degeneracy_of, {"power": -0.5, "lowest": 0.01}, NOTHING),
    "scaling": (laws.scaling, {}, EVERYTHING),
    "scaling, n^-1/2": (laws.scaling, {"over_width": -0.5, "over_depth": -0.5}, NOTHING),
    "collapse": (laws.collapse_of, {}, r"^(?!f_1 - f_0 ~ L\^p, corrected, tied \| a rate)"),
    "collapse, exchanged": (laws.collapse_of, {"inner": EXCHANGED, "outer": 0.0, "change": grown}, INNER_AS_WELL),
    "transfer": (laws.transfer, {}, EVERYTHING),
    "transfer, downwards": (laws.transfer, {"drifts": -0.3}, EVERYTHING),
    "transfer, exchanged": (laws.transfer, {"stays": 0.15, "drifts": 0.0, "limit": 2.0, "gain": 0.1}, NOTHING),
    "transfer, a small rate": (laws.transfer, {"stays": -0.15, "drifts": 0.0, "limit": 0.5, "gain": 0.1}, NOTHING),
    "plane": (laws.plane_of, {}, EVERYTHING),
    "plane, shifted": (laws.plane_of, {"start": lambda alpha: (alpha == 0.5) / 2, "step": 0.5}, NOTHING),
    "diversity": (laws.diversity_of, {}, EVERYTHING),
    "diversity, exchanged": (
        laws.diversity_of,
        {"trained": {"depth_mup": 1.0, "complete_p": 0.5}, "untrained": 1.0},
        NOTHING,
    ),
    "nonlinearity": (laws.nonlinearity_of, {}, EVERYTHING),
    "nonlinearity, the others": (laws.nonlinearity_of, {"best": "others"}, NOTHING),
    "interaction": (laws.interaction, {}, EVERYTHING),
    "interaction, exchanged": (laws.interaction, {"falling": "complete_p"}, NOTHING),
    "identity": (laws.identity_of, {}, r"^(?!left.*(untied|decoupled).*FSF)"),
    "identity, otherwise": (
        laws.identity_of,
        {"rest": 2.0, "left": 1e-3, "fails": 0.0, "tied": 0.1, "approach": 0.0},
        r"(untied|decoupled).*FSF",
    ),
    "alignment": (laws.alignment_of, {}, r"^(?!.*depth leaves)"),
    "alignment, otherwise": (
        laws.alignment_of,
        {"power": 0.0, "curve": -0.3, "small": 0.0, "large": 0.0, "spectrum": 0.5},
        r"depth leaves|^cos theta_L, (b|our)",
    ),
    "isometry": (laws.isometry_of, {}, EVERYTHING),
    "isometry, otherwise": (
        laws.isometry_of,
        {"aligned": -0.5, "others": 0.0, "spread": 0.0, "spectrum": 0.5, "bound": -0.1},
        r"^cos theta_L, |L\^p, orthogonal tanh \| isometry|^spread, ",
    ),
    "control": (laws.control_of, {}, EVERYTHING),
    "control, exchanged": (
        laws.control_of,
        {"grows": 0.5, "held": 0.5, "over": 0.0, "behind": 1.0, "beside": 2.0},
        NOTHING,
    ),
    "control, no gain": (
        laws.control_of,
        {"grows": 0.25, "behind": 0.1, "over": 0.1},
        "control, Res|p at the start, .*(control|times)|training.* control",
    ),
    "regimes": (laws.regimes_of, {}, EVERYTHING),
    "regimes, everything half a power less": (laws.regimes_of, {"shift": -0.5}, SLOWER),
    "regimes, no matter which loss": (laws.regimes_of, {"alike": True}, "cross-entropy|f_t - f_0 grows"),
    "stability": (laws.stability_of, {}, EVERYTHING),
    "stability, half a power more": (laws.stability_of, {"shift": 0.5}, NOTHING),
    "updates": (laws.updates_of, {}, EVERYTHING),
    "updates, half a power less": (laws.updates_of, {"shift": -0.5}, NOTHING),
    "persistence": (laws.persistence_of, {}, EVERYTHING),
    "persistence, half a power more": (laws.persistence_of, {"shift": 0.5}, NOTHING),
}


@pytest.mark.parametrize("case", CASES)
def test_verdicts_of_exact_laws(case):
    law, exponents, supported = CASES[case]
    findings = laws.report(case.split(",")[0], law, **exponents).findings
    found = {f"{finding.quantity} | {finding.source}": finding.verdict for finding in findings}
    expected = {
        finding: Verdict.SUPPORTED if re.search(supported, finding) else Verdict.CONTRADICTED for finding in found
    }
    assert found == expected


def test_every_study_has_its_law_and_another():
    named = [case.split(",")[0] for case in CASES]
    assert all(named.count(name) >= 2 for name in studies.STUDIES)


def test_a_law_of_the_other_sign_is_no_falling_one():
    """Losses that rise towards the limit's from below are not what diminishing returns are of."""
    findings = laws.report("scaling", laws.scaling, sign=-1).findings
    assert {finding.verdict for finding in findings} == {Verdict.UNDECIDED}
