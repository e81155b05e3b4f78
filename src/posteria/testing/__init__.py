"""Contract suites for models, encoders, densities and objectives: one module per room.

Plain functions that raise AssertionError, so that a third party can run them on a part of their own in any
test framework, such as ``posteria.testing.models.check_model(my_model, num_columns=3)``.
"""
