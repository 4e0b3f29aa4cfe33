"""The parts of reliq as Dramatiq middlewares: one file and one class each. They decide, and leave a verdict."""
