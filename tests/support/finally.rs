//! The end of threads that run until a test has done its part.

use std::sync::atomic::{AtomicBool, Ordering};

/// Sets a flag when it is dropped, also if the test fails. Otherwise, a scope would wait for its threads for ever.
pub(crate) struct Finally<'d>(pub(crate) &'d AtomicBool);

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
