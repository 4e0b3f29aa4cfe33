"""StubBroker: the transport that test suites run on. Messages live in the memory of one process."""
