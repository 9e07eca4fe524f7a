//! The kernel: sockets, submissions, completions.
