"""Other frameworks: what lets them use this library's components by name."""
