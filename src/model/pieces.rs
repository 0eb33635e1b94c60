//! A buffer that keeps large pieces as they are: weights go from the mapped file to the new one without a copy in memory.

#![allow(unsafe_code)]

use bytes::buf::UninitSlice;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Pieces shorter than this are copied together.
const LARGE: usize = 1 << 14;

/// What has been written, in order.
#[derive(Default)]
pub(super) struct Pieces {
    done: Vec<Bytes>,
    open: BytesMut,
}

impl Pieces {
    /// The pieces.
    pub fn finish(mut self) -> Vec<Bytes> {
        self.close();
        self.done
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.done.push(self.open.split().freeze());
        }
    }
}

// SAFETY: every method that hands out memory or advances over it is that of `BytesMut`, which upholds the contract; nothing
// else touches the bytes it was promised.
unsafe impl BufMut for Pieces {
    fn remaining_mut(&self) -> usize {
        self.open.remaining_mut()
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        // SAFETY: the caller's promise, handed on.
        unsafe { self.open.advance_mut(count) }
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        self.open.chunk_mut()
    }

    fn put<T: Buf>(&mut self, mut source: T) {
        if source.remaining() < LARGE {
            return self.open.put(source);
        }
        self.close();
        // For `Bytes` this shares the memory.
        self.done.push(source.copy_to_bytes(source.remaining()));
    }

    fn put_slice(&mut self, source: &[u8]) {
        self.open.put_slice(source);
    }
}
