"""Golden answers of MindSpore and MindFormers, and the tests that hold reshard to them."""
