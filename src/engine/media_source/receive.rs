//! Receiving from sockets: what each is armed with, the buffers that the kernel fills, what has to be armed again.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::opcode;
use io_uring::types::Fixed;
use socket2::Socket;

use super::super::buffers::Buffers;
use super::super::datagram::{self, Datagram};
use super::super::ring::{Completion, Kind, Ring, Token};
use crate::limits;

/// Buffer group of the media sockets.
const GROUP: u16 = 0;

/// The multishot receives of a reactor's media sockets, armed for good.
pub struct Receiver {
    buffers: Buffers,
    template: Box<libc::msghdr>,
    /// Sockets whose receive has ended; armed again once buffers are back.
    ended: Vec<u32>,
}

impl Receiver {
    /// Registers the sockets as files `0..` of the ring's table and arms them. They stay the caller's.
    pub fn arm<'a>(
        sockets: impl IntoIterator<Item = &'a Socket>,
        ring: &mut Ring,
    ) -> Result<Receiver, String> {
        let descriptors: Vec<i32> = sockets.into_iter().map(AsRawFd::as_raw_fd).collect();
        let count = descriptors.len();
        // A reactor whose ports are all taken has none, and the kernel refuses to register nothing.
        if count > 0 {
            ring.submitter()
                .register_files_update(0, &descriptors)
                .map_err(|e| format!("registering {count} media sockets failed: {e}"))?;
        }
        let buffers = Buffers::new(ring, GROUP, limits::MEDIA_BUFFERS, limits::MEDIA_BUFFER_SIZE)?;
        let template = Box::new(datagram::template());
        let mut receiver = Receiver { buffers, template, ended: (0..count as u32).collect() };
        receiver.publish(ring).map_err(|e| format!("arming {count} media sockets failed: {e}"))?;
        Ok(receiver)
    }

    /// Hands the datagram of a completion to `take`, then the buffer back to the kernel. `None`: there is one, and it cannot
    /// be read. `Err(ENOBUFS)`: the buffers had run out, the datagrams wait in their sockets.
    pub fn complete(
        &mut self,
        completion: Completion,
        take: impl FnOnce(Option<Datagram<'_>>),
    ) -> Result<(), i32> {
        if !completion.more() {
            self.ended.push(completion.token.slot);
        }
        if let Some(id) = completion.buffer() {
            let len = usize::try_from(completion.result).unwrap_or(0);
            if completion.result >= 0 {
                take(datagram::parse(self.buffers.bytes(id, len), &self.template));
            }
            self.buffers.give(id);
        }
        if completion.result < 0 { Err(-completion.result) } else { Ok(()) }
    }

    /// The port that the datagram of a completion was sent to, without a proof: [`datagram::port_hint`].
    pub fn port_hint(&self, completion: Completion) -> Option<u16> {
        datagram::port_hint(self.buffers.bytes(completion.buffer()?, limits::MEDIA_BUFFER_SIZE))
    }

    /// Returns the buffers of this turn to the kernel and arms again what has ended.
    pub fn publish(&mut self, ring: &mut Ring) -> io::Result<()> {
        self.buffers.publish();
        while let Some(socket) = self.ended.pop() {
            let entry = opcode::RecvMsgMulti::new(Fixed(socket), &*self.template, GROUP)
                .build()
                .user_data(Token::new(Kind::Media, socket, 0).pack());
            // SAFETY: the template is boxed and lives as long as the ring's thread; the buffers are never unmapped.
            unsafe { ring.push(&entry)? };
        }
        Ok(())
    }
}
