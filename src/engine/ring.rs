//! One io_uring: set-up with reasons for failure, tokens, waiting by batch, reaping.

use std::io;
use std::time::Duration;

use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, squeue};

use crate::limits;

/// What a completion is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A datagram on a media socket; slot: index of the socket in its source.
    Media = 1,
    /// A datagram on a SIP socket; slot: index of the listener.
    SipDatagram,
    /// A connection on a listening socket; slot: index of the listener.
    Accept,
    /// Bytes from a connection.
    TcpReceive,
    /// Bytes taken by a connection.
    TcpSend,
    /// The mailbox has something.
    Wake,
    /// A write has completed; slot: the file's place in the registered table.
    Write,
}

const KINDS: [Kind; 7] =
    [Kind::Media, Kind::SipDatagram, Kind::Accept, Kind::TcpReceive, Kind::TcpSend, Kind::Wake, Kind::Write];

/// `kind:8 | slot:24 | generation:32`, the user_data of every operation. The generation tells a completion of a slot's
/// former owner from one of its present owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token {
    pub kind: Kind,
    pub slot: u32,
    pub generation: u32,
}

impl Token {
    pub fn new(kind: Kind, slot: u32, generation: u32) -> Token {
        debug_assert!(slot < 1 << 24);
        Token { kind, slot, generation }
    }

    pub fn pack(self) -> u64 {
        (self.kind as u64) << 56 | u64::from(self.slot) << 32 | u64::from(self.generation)
    }

    fn unpack(bits: u64) -> Option<Token> {
        let kind = *KINDS.get(usize::from((bits >> 56) as u8).checked_sub(1)?)?;
        Some(Token { kind, slot: (bits >> 32) as u32 & 0xff_ffff, generation: bits as u32 })
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Completion {
    pub token: Token,
    /// Bytes, a descriptor, or −errno.
    pub result: i32,
    flags: u32,
}

impl Completion {
    /// A multishot operation goes on; otherwise it has to be armed again.
    pub fn more(self) -> bool {
        cqueue::more(self.flags)
    }

    /// The provided buffer that holds the bytes.
    pub fn buffer(self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

pub struct Ring {
    io: IoUring,
    batch: Vec<Completion>,
    /// Linux 6.12: wait at least, at most, and for so many.
    min_timeout: bool,
}

impl Ring {
    /// `table`: places for registered files. To be called on the thread that will use it: SINGLE_ISSUER and DEFER_TASKRUN
    /// bind the ring to it.
    pub fn new(table: u32) -> Result<Ring, String> {
        let io: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(limits::CQ_ENTRIES)
            .build(limits::SQ_ENTRIES)
            .map_err(|e| explain(&e))?;
        io.submitter().register_files_sparse(table.max(1)).map_err(|e| {
            format!("registering a table of {table} files failed ({e}): raise RLIMIT_NOFILE or give fewer media ports")
        })?;
        let mut workers = [limits::DISK_WORKERS, 0];
        io.submitter()
            .register_iowq_max_workers(&mut workers)
            .map_err(|e| format!("limiting io_uring workers failed: {e}"))?;
        let min_timeout = io.params().is_feature_min_timeout();
        Ok(Ring { io, batch: Vec::with_capacity(limits::COMPLETIONS_PER_TURN), min_timeout })
    }

    pub fn submitter(&self) -> io_uring::Submitter<'_> {
        self.io.submitter()
    }

    /// Queues one operation; submits what is queued when the queue is full.
    ///
    /// # Safety
    /// What the entry points to must stay valid until its completion.
    pub unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: the caller's promise.
            if unsafe { self.io.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.io.submit()?;
        }
    }

    /// Submits what is queued, then sleeps: at least `least` unless `limits::BATCH_COMPLETIONS` completions come, at most `most`.
    pub fn wait(&mut self, least: Duration, most: Duration) -> io::Result<()> {
        let most = if self.min_timeout || least == Duration::ZERO { most } else { least };
        let want = if least == Duration::ZERO { 1 } else { limits::BATCH_COMPLETIONS };
        let timespec = Timespec::from(most);
        let mut args = SubmitArgs::new().timespec(&timespec);
        if self.min_timeout {
            args = args.min_wait_usec(least.as_micros() as u32);
        }
        match self.io.submitter().submit_with_args(want, &args) {
            Ok(_) => Ok(()),
            // EBUSY: completions wait to be reaped first.
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// Cancels every operation and lets go of every file. Otherwise the kernel does so some time after the ring is gone, and
    /// until then the ports look taken to the next recorder.
    pub fn close(&self) -> io::Result<()> {
        self.io.submitter().register_sync_cancel(None, CancelBuilder::any())?;
        self.io.submitter().unregister_files()
    }

    /// Takes the completions of this turn. Give the vector back with [`Ring::reaped`], so that it is not allocated again.
    pub fn reap(&mut self) -> Vec<Completion> {
        let mut batch = std::mem::take(&mut self.batch);
        batch.extend(self.io.completion().take(limits::COMPLETIONS_PER_TURN).filter_map(|entry| {
            let token = Token::unpack(entry.user_data())?;
            Some(Completion { token, result: entry.result(), flags: entry.flags() })
        }));
        batch
    }

    pub fn reaped(&mut self, mut batch: Vec<Completion>) {
        batch.clear();
        self.batch = batch;
    }
}

/// Why there is no io_uring, and what to change.
fn explain(e: &io::Error) -> String {
    let why = match e.raw_os_error() {
        Some(libc::ENOSYS) => {
            "this kernel has no io_uring, or a container's seccomp profile hides it: sipreel needs Linux 6.1 or newer"
        }
        Some(libc::EPERM) => {
            "it is not permitted here: see sysctl kernel.io_uring_disabled and the container's seccomp profile"
        }
        Some(libc::ENOMEM) => {
            "memory for the rings was refused: raise RLIMIT_MEMLOCK or the memory limit of the control group"
        }
        Some(libc::EINVAL) => "the kernel refused the ring's flags: sipreel needs Linux 6.1 or newer",
        _ => "setting it up failed",
    };
    format!("io_uring is not available ({e}): {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_trip() {
        for kind in KINDS {
            let token = Token::new(kind, 0xab_cdef, 0x1234_5678);
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(0), None);
        assert_eq!(Token::unpack(u64::MAX), None);
    }

    #[test]
    fn explanations_say_what_to_change() {
        for (errno, word) in
            [(libc::ENOSYS, "6.1"), (libc::EPERM, "io_uring_disabled"), (libc::ENOMEM, "MEMLOCK")]
        {
            assert!(explain(&io::Error::from_raw_os_error(errno)).contains(word));
        }
    }
}
