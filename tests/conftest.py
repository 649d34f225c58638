"""Settings that every test shares."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "dev", max_examples=30, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("dev"), max_examples=200)
settings.load_profile("dev")
