"""What a kernel is meant to compute: `Spec`, presets of published sources, and checks of specs."""

from refdiff.oracle.spec.spec import Spec as Spec
