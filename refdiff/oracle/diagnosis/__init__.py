"""From a wrong output to the name of the mistake."""

from refdiff.oracle.diagnosis.diagnose import diagnose
from refdiff.oracle.diagnosis.ranking import Candidate, Fit, Ranking

__all__ = ["Candidate", "Fit", "Ranking", "diagnose"]
