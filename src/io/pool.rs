//! Receive buffers of the epoll backend: plain memory, allocated when first used, the most
//! recently used handed out first, so that an idle shard's working set stays in the cache.
//!
//! Invariant: a buffer is free, or handed out once (`held`), or between `take` and one of
//! `hand_out` and `put_back` within one read.
#![forbid(unsafe_code)]

use super::{PoolSize, RecvBuf};

pub(super) struct Pool {
    bytes_each: usize,
    buffers: Vec<Box<[u8]>>,
    free: Vec<u32>,
    held: Vec<bool>,
}

impl Pool {
    pub(super) fn new(size: PoolSize) -> Self {
        assert!(size.count > 0 && size.bytes > 0, "invariant: a pool has buffers");
        let count = u32::try_from(size.count).expect("invariant: buffers are numbered by 32 bits");
        Self {
            bytes_each: size.bytes,
            buffers: std::iter::repeat_with(Box::default).take(size.count).collect(),
            free: (0..count).rev().collect(),
            held: vec![false; size.count],
        }
    }

    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// A free buffer's number, to fill it.
    pub(super) fn take(&mut self) -> Option<u32> {
        let index = self.free.pop()?;
        let buffer = &mut self.buffers[index as usize];
        if buffer.is_empty() {
            *buffer = vec![0; self.bytes_each].into_boxed_slice();
        }
        Some(index)
    }

    /// The memory of a taken buffer.
    pub(super) fn memory(&mut self, index: u32) -> &mut [u8] {
        &mut self.buffers[index as usize]
    }

    /// A taken buffer was not needed.
    pub(super) fn put_back(&mut self, index: u32) {
        self.free.push(index);
    }

    /// A taken buffer has `len` bytes in it.
    pub(super) fn hand_out(&mut self, index: u32, len: usize) -> RecvBuf {
        debug_assert!(len > 0 && len <= self.bytes_each && !self.held[index as usize]);
        self.held[index as usize] = true;
        RecvBuf::new(index, len as u32)
    }

    pub(super) fn bytes(&self, buf: &RecvBuf) -> &[u8] {
        &self.buffers[buf.index()][..buf.len()]
    }

    #[expect(clippy::needless_pass_by_value, reason = "a released buffer is gone")]
    pub(super) fn release(&mut self, buf: RecvBuf) {
        assert!(self.held[buf.index()], "invariant: only a buffer that is out is released");
        self.held[buf.index()] = false;
        self.free.push(buf.index() as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_each_buffer_once() {
        let mut pool = Pool::new(PoolSize { count: 2, bytes: 8 });
        let a = pool.take().unwrap();
        pool.memory(a)[..3].copy_from_slice(b"abc");
        let a = pool.hand_out(a, 3);
        let b = pool.take().unwrap();
        assert!(!pool.has_free() && pool.take().is_none());
        assert_eq!(pool.bytes(&a), b"abc");
        pool.put_back(b);
        pool.release(a);
        assert!(pool.take().is_some() && pool.take().is_some());
    }

    #[test]
    #[should_panic(expected = "only a buffer that is out")]
    fn refuses_a_buffer_that_is_not_out() {
        let mut pool = Pool::new(PoolSize { count: 2, bytes: 8 });
        pool.release(RecvBuf::new(1, 1));
    }
}
