//! What other threads have for a reactor: a bounded channel, and an eventfd that its ring reads.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use rustls::ServerConfig;

use super::recordings::guests::Handover;
use crate::limits;
use crate::session::{Command, Failure, RecordingKey};

/// The answer to `directory::Job::Create` and `Add`.
#[derive(Debug)]
pub struct Opened {
    pub key: RecordingKey,
    pub result: Result<Vec<OwnedFd>, Failure>,
}

#[derive(Debug)]
pub enum Letter {
    Command(Command),
    Opened(Opened),
    /// From another reactor.
    Handover(Handover),
    /// Handshakes that begin from now on have this certificate.
    Identity(Arc<ServerConfig>),
    /// Nothing more will come: send what is queued, then end.
    Stop,
}

/// The sending end. Letters are put in first; then [`Mailbox::ring_bell`] wakes the reactor once for all of them.
#[derive(Clone)]
pub struct Mailbox {
    letters: Sender<Letter>,
    bell: Arc<OwnedFd>,
}

/// The reactor's end.
pub struct Inbox {
    pub letters: Receiver<Letter>,
    bell: Arc<OwnedFd>,
    /// Where the ring's read of the eventfd lands.
    pub rings: Box<u64>,
}

pub fn mailbox() -> io::Result<(Mailbox, Inbox)> {
    // SAFETY: eventfd takes no pointer; a descriptor that is not negative is ours alone.
    let bell = unsafe {
        let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Arc::new(OwnedFd::from_raw_fd(fd))
    };
    let (sender, receiver) = bounded(limits::COMMANDS_MAX);
    Ok((
        Mailbox { letters: sender, bell: bell.clone() },
        Inbox { letters: receiver, bell, rings: Box::new(0) },
    ))
}

impl Mailbox {
    /// Waits when the box is full: only control, the directory thread and the shell call this, and a reactor never waits for them.
    /// A reactor that has ended takes nothing more, which only happens once everything is committed.
    pub fn put(&self, letter: Letter) {
        let letter = match self.letters.try_send(letter) {
            Ok(()) => return,
            Err(e) => e.into_inner(),
        };
        self.ring_bell();
        let _ = self.letters.send(letter);
    }

    /// Puts in what another reactor has kept, as far as there is room: reactors wait for nobody. What is for a reactor that has
    /// ended is gone.
    pub fn put_kept(&self, kept: &mut VecDeque<Handover>) {
        let waiting = kept.len();
        while let Some(handover) = kept.pop_front() {
            if let Err(TrySendError::Full(Letter::Handover(handover))) =
                self.letters.try_send(Letter::Handover(handover))
            {
                kept.push_front(handover);
                break;
            }
        }
        if kept.len() < waiting {
            self.ring_bell();
        }
    }

    pub fn ring_bell(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: writes eight bytes from a local array to a descriptor that `self` keeps open.
        unsafe { libc::write(self.bell.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

impl Inbox {
    pub fn bell(&self) -> i32 {
        self.bell.as_raw_fd()
    }
}
