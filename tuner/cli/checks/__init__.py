"""What ``tuner doctor`` looks at, a module a subject; each check yields findings and writes nothing."""
