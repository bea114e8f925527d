"""What differs between this machine's server and the hosted platform, in what a program sends.

Recorded requests and source code are read as data: nothing in them is imported or run. Knows no
engine and no key, and asks no network.
"""

from glimmer.migration.finding import Finding
from glimmer.migration.rules import RULES, Rule
from glimmer.migration.scan import Scan, scan_paths
from glimmer.migration.target import Direction, Target

__all__ = ["RULES", "Direction", "Finding", "Rule", "Scan", "Target", "scan_paths"]
