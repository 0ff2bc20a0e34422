//! What a [`Backend`](crate::Backend) promises, as checks that can be run against any of them.
