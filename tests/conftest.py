"""Settings of all tests."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "any-machine",
    deadline=None,  # no test asserts a time: a busy machine is no failure
    # Examples of one test may share its folder: each writes what it reads.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("any-machine")
