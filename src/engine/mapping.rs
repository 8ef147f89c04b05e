//! Memory mapped for the kernel and us: receive buffers, frames, write blocks, rings.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

/// Mapped memory, until it is dropped. It begins at a page's beginning.
pub struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    /// Zeroed memory on huge pages: reserved ones if there are, else such as the kernel can put together, else small ones. All of
    /// it is there when this returns.
    pub fn huge(len: usize) -> io::Result<Mapping> {
        let anonymous = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE;
        // MAP_POPULATE also tells at once when too few are reserved.
        let reserved = anonymous | libc::MAP_HUGETLB | libc::MAP_POPULATE;
        Mapping::new(len, reserved, -1, 0).or_else(|_| {
            let mapping = Mapping::new(len, anonymous, -1, 0)?;
            mapping.advise(libc::MADV_HUGEPAGE);
            match mapping.advise(libc::MADV_POPULATE_WRITE) {
                0 => Ok(mapping),
                _ => Err(io::Error::last_os_error()),
            }
        })
    }

    /// What a descriptor offers at this offset.
    pub fn shared(fd: &OwnedFd, at: libc::off_t, len: usize) -> io::Result<Mapping> {
        Mapping::new(len, libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd(), at)
    }

    fn new(len: usize, flags: libc::c_int, fd: libc::c_int, at: libc::off_t) -> io::Result<Mapping> {
        // SAFETY: a mapping at an address of the kernel's choice touches no memory of ours.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, at) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { start: start.cast(), len })
    }

    fn advise(&self, advice: libc::c_int) -> libc::c_int {
        // SAFETY: the mapping is ours, and neither advice that is given changes what is in it.
        unsafe { libc::madvise(self.start.cast(), self.len, advice) }
    }

    pub fn start(&self) -> *mut u8 {
        self.start
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the bytes are initialised (the kernel zeroes them) and mapped until the mapping is dropped, which ends this borrow.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and nobody else has a reference.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// Keeps it mapped as long as the process lives.
    pub fn leak(self) -> &'static mut [u8] {
        let mapping = std::mem::ManuallyDrop::new(self);
        // SAFETY: the bytes are initialised (the kernel zeroes them), mapped for good from now on, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(mapping.start, mapping.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and whole, and its owner hands out no reference that outlives it. The kernel keeps the
        // pages as long as a socket needs them.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_memory_is_zeroed_and_all_there() {
        const LEN: usize = 5 << 20;
        let memory = Mapping::huge(LEN).unwrap().leak();
        assert!(memory.len() == LEN && memory.iter().all(|&byte| byte == 0));
        assert_eq!(memory.as_ptr() as usize % 4_096, 0);
        let mut resident = vec![0u8; LEN / 4_096];
        // SAFETY: the vector has a byte for each page of the mapping, and mincore only reads the page tables.
        assert_eq!(unsafe { libc::mincore(memory.as_mut_ptr().cast(), LEN, resident.as_mut_ptr()) }, 0);
        assert!(resident.iter().all(|page| page & 1 == 1));
    }
}
