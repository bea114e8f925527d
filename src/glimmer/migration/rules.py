"""All differences that are looked for, by name."""

from __future__ import annotations

from glimmer.migration.call import Call
from glimmer.migration.finding import FileFindings
from glimmer.migration.message_rules import MESSAGE_RULES
from glimmer.migration.model_rules import MODEL_RULES
from glimmer.migration.option_rules import OPTION_RULES
from glimmer.migration.program_rules import PROGRAM_RULES
from glimmer.migration.rule import Rule
from glimmer.migration.sampling_rules import SAMPLING_RULES
from glimmer.migration.target import Target

__all__ = ["RULES", "Rule", "check_call"]

RULES = {
    rule.id: rule
    for rule in (
        *SAMPLING_RULES,
        *OPTION_RULES,
        *MESSAGE_RULES,
        *MODEL_RULES,
        *PROGRAM_RULES,
    )
}


def check_call(call: Call, target: Target, findings: FileFindings, times: int = 1) -> None:
    """Add what every rule for this endpoint finds in ``call``, which came so many times."""
    for rule in RULES.values():
        if rule.detect is None or call.endpoint not in rule.endpoints:
            continue
        if rule.to in ("both", target.direction):
            for hit in rule.detect(call, target):
                findings.add(rule, hit.detail, call.line_of(hit.parameter), hit.fix, times)
