"""What a kernel is meant to compute: a `Spec`, the presets of published sources, and which specs are possible."""

from refdiff.oracle.spec.spec import Spec as Spec
