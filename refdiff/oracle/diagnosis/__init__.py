"""From a wrong output to the name of the mistake."""

from refdiff.oracle.diagnosis.diagnose import diagnose
from refdiff.oracle.diagnosis.ranking import Finding, Ranking

__all__ = ["Finding", "Ranking", "diagnose"]
