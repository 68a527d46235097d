//! Insertion into lists that mostly stay short.

/// Inserts an item at index `at`. The capacity grows by one up to four items, then doubles.
pub(crate) fn insert<T>(list: &mut Vec<T>, at: usize, item: T) {
    if list.len() == list.capacity() {
        list.reserve_exact(if list.len() < 4 { 1 } else { list.len() });
    }
    list.insert(at, item);
}
