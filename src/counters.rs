//! Counters: one writer each, readers anywhere. Dropped, late, refused, truncated: each has one.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::FINDING_CODES_MAX;

/// A counter or gauge with a single writer. Readers see it some nanoseconds late.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }

    /// Only the owning thread may call this: load and store, no locked instruction.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    #[inline]
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! causes {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];
            pub const COUNT: usize = $name::ALL.len();

            /// The name under which stats and logs show it.
            pub const fn text(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }
    };
}

causes! {
    /// Why a received media packet is not on disk.
    DropCause {
        /// The port has no recording and never had one.
        NoSession = "no_session",
        /// The kernel's account of it could not be read: it says not where the packet came from.
        Unreadable = "unreadable",
        /// The recording of that port has ended.
        AfterEnd = "after_end",
        /// Raw format only: neither RTP nor RTCP, so it has no place in a file of codec bytes.
        NotRtp = "not_rtp",
        /// Raw format only: RTCP is counted in the manifest, not written.
        Rtcp = "rtcp_in_raw",
        /// Raw format only: a payload type that is not the file's codec (telephone-event, comfort noise), or no payload at all.
        OtherPayload = "other_payload_in_raw",
        /// Raw format only: its place on the media clock is before the recording's first packet.
        BeforeStart = "before_start_in_raw",
        /// All write blocks are in use: the disk is too slow.
        NoBlock = "no_block",
        /// This file's writes are too far behind.
        QueueFull = "write_queue_full",
        /// The write failed; the log names file and error.
        WriteFailed = "write_failed",
    }
}

causes! {
    /// Why an INVITE got no recording.
    RefuseCause {
        NotRecording = "not_a_recording_session",
        BadRequest = "bad_request",
        /// A Request-URI that cannot be ours.
        BadUri = "bad_uri",
        BadExtension = "bad_extension",
        /// A session timer that is too short.
        Interval = "session_interval",
        UnsupportedBody = "unsupported_body",
        /// An SDP body that is larger than any that is read.
        TooLarge = "too_large",
        NotAcceptable = "not_acceptable",
        BadMetadata = "bad_metadata",
        Replaces = "replaces",
        NoSlot = "max_sessions",
        NoPort = "no_port",
        Draining = "draining",
        Overload = "overload",
        /// It waited here for so long that its SRC has given up.
        TooLate = "too_late",
        Rate = "rate_limit",
        SourceRate = "rate_limit_source",
        Unauthenticated = "unauthenticated",
        SourceSessions = "max_sessions_per_source",
        OpenFailed = "open_failed",
        OpenTimeout = "open_timeout",
        Cancelled = "cancelled",
        Operator = "operator",
    }
}

causes! {
    /// Why an established session ended: `end_cause` in the manifest.
    EndCause {
        /// The SRC said so.
        Bye = "bye",
        /// No ACK for a 200 in 32 s (RFC 3261 §13.3.1.4).
        AckTimeout = "ack_timeout",
        /// No refresh in the time agreed (RFC 4028 §10).
        SessionExpired = "session_expired",
        /// A refresh of ours got no answer, or one that ends the dialog (RFC 4028 §10).
        RefreshFailed = "refresh_failed",
        /// The ACK had no answer to our offer (RFC 3261 §13.2.2.4).
        NoAnswer = "no_answer",
        /// No packet on any stream for `--media-timeout`, while some was to be expected.
        MediaTimeout = "media_timeout",
        /// The connection is gone and nothing was heard for `--transport-timeout`.
        TransportLost = "transport_lost",
        /// It lasted for `--max-duration`.
        MaxDuration = "max_duration",
        /// Metadata came that `--strict-siprec` refuses, in a message that cannot be refused.
        BadMetadata = "bad_metadata",
        /// Another session has taken its place (Replaces, RFC 3891).
        Replaced = "replaced",
        /// `sipreel end`.
        Operator = "operator",
        /// The recorder was stopped.
        Drain = "drain",
    }
}

causes! {
    /// Why a connection was not taken.
    ConnectionRefusal {
        /// The kernel gave none: no descriptors, or it was gone already.
        Accept = "accept_failed",
        /// There are as many as there may be.
        Total = "connections_max",
        /// Its source has as many as one may have.
        PerSource = "connections_per_source",
        /// Its address is not admitted.
        Denied = "denied",
        /// TLS: too many handshakes begin at once.
        HandshakeRate = "handshake_rate",
    }
}

causes! {
    /// Why a connection ended.
    ConnectionEnd {
        /// The peer closed it.
        Peer = "peer",
        /// It was reset, or it broke.
        Reset = "reset",
        /// Neither message nor keepalive for `limits::TCP_IDLE_TIMEOUT`.
        Idle = "idle",
        /// A message, or the first one, took too long.
        MessageTime = "message_time",
        HandshakeTime = "handshake_time",
        /// TLS has failed.
        Tls = "tls",
        /// What came could not be framed.
        Unframeable = "unframeable",
        /// The peer does not read what it is sent.
        NotReading = "not_reading",
        /// Control had no room for a message of it.
        Overload = "overload",
        /// Control wanted it so.
        Asked = "asked",
    }
}

causes! {
    /// Why TLS came to nothing.
    HandshakeFailure {
        /// The peer speaks neither TLS 1.2 nor 1.3.
        Version = "version",
        /// No cipher suite, group or signature that both know.
        NothingInCommon = "nothing_in_common",
        NoCertificate = "no_certificate",
        CertificateExpired = "certificate_expired",
        /// Of an unknown CA, not for clients, or broken.
        CertificateRefused = "certificate_refused",
        /// The peer does not like us.
        Alert = "alert",
        NotTls = "not_tls",
        Protocol = "protocol",
        Time = "time",
        /// The peer went away.
        Abandoned = "abandoned",
    }
}

causes! {
    TlsVersion {
        V1_2 = "1.2",
        V1_3 = "1.3",
    }
}

/// What one reactor counts. It is the only writer.
#[derive(Debug)]
pub struct ReactorCounters {
    /// Media datagrams and their bytes (UDP payload), as received.
    pub packets: Counter,
    pub bytes: Counter,
    /// Media datagrams whose record the kernel has taken (the write has completed).
    pub recorded_packets: Counter,
    pub recorded_bytes: Counter,
    /// Media datagrams in blocks not yet written. received = recorded + staged + Σ dropped, and staged is 0 at a quiet moment.
    pub staged_packets: Counter,
    pub dropped: [Counter; DropCause::COUNT],
    /// Datagrams longer than a receive buffer; recorded as far as they fit.
    pub truncated: Counter,
    /// Datagrams that the kernel dropped before we could receive them (SO_MEMINFO), seen so far.
    pub kernel_dropped: Counter,
    /// Times the receive buffers ran out; the datagrams wait in their sockets.
    pub buffers_exhausted: Counter,
    /// RTCP packets that we sent from media ports, and those that did not leave.
    pub rtcp_sent: Counter,
    pub rtcp_send_errors: Counter,
    pub turns: Counter,
    pub blocks_total: Counter,
    pub blocks_used: Counter,
    pub disk_writes: Counter,
    pub disk_bytes: Counter,
    pub disk_errors: Counter,
    pub sip_datagrams: Counter,
    /// SIP datagrams that the kernel dropped for want of room in the socket (SO_MEMINFO).
    pub sip_kernel_dropped: Counter,
    /// SIP messages that control had no room for: the peer of a datagram sends it again, that of a stream is disconnected.
    pub sip_overload: Counter,
    /// Of these: messages of a source that had its share while control was behind.
    pub sip_unfair: Counter,
    /// Datagrams and connections from addresses that are not admitted.
    pub sip_denied: Counter,
    pub sip_sent: Counter,
    pub sip_send_errors: Counter,
    pub tcp_accepted: Counter,
    /// tcp_accepted = tcp_open + Σ connections_closed, TLS or not.
    pub tcp_open: Counter,
    pub connections_refused: [Counter; ConnectionRefusal::COUNT],
    pub connections_closed: [Counter; ConnectionEnd::COUNT],
    /// Handshakes that are done, by version, and those of them that went on with an older session's secrets.
    pub tls_handshakes: [Counter; TlsVersion::COUNT],
    pub tls_resumed: Counter,
    pub tls_failed: [Counter; HandshakeFailure::COUNT],
    /// Keepalives of connections that were answered (RFC 5626 §4.4.1).
    pub keepalives: Counter,
    /// Completions of operations whose slot has moved on.
    pub stale_completions: Counter,
}

impl Default for ReactorCounters {
    fn default() -> Self {
        // Every field is a `Counter`, and the arrays have no `Default` of their own lengths.
        ReactorCounters {
            dropped: [const { Counter::new() }; DropCause::COUNT],
            packets: Counter::new(),
            bytes: Counter::new(),
            recorded_packets: Counter::new(),
            recorded_bytes: Counter::new(),
            staged_packets: Counter::new(),
            truncated: Counter::new(),
            kernel_dropped: Counter::new(),
            buffers_exhausted: Counter::new(),
            rtcp_sent: Counter::new(),
            rtcp_send_errors: Counter::new(),
            turns: Counter::new(),
            blocks_total: Counter::new(),
            blocks_used: Counter::new(),
            disk_writes: Counter::new(),
            disk_bytes: Counter::new(),
            disk_errors: Counter::new(),
            sip_datagrams: Counter::new(),
            sip_kernel_dropped: Counter::new(),
            sip_overload: Counter::new(),
            sip_unfair: Counter::new(),
            sip_denied: Counter::new(),
            sip_sent: Counter::new(),
            sip_send_errors: Counter::new(),
            tcp_accepted: Counter::new(),
            tcp_open: Counter::new(),
            connections_refused: [const { Counter::new() }; ConnectionRefusal::COUNT],
            connections_closed: [const { Counter::new() }; ConnectionEnd::COUNT],
            tls_handshakes: [const { Counter::new() }; TlsVersion::COUNT],
            tls_resumed: Counter::new(),
            tls_failed: [const { Counter::new() }; HandshakeFailure::COUNT],
            keepalives: Counter::new(),
            stale_completions: Counter::new(),
        }
    }
}

/// What was left by recorders that died. The thread that finishes it is the only writer.
#[derive(Debug, Default)]
pub struct RecoveryCounters {
    /// Found and not yet looked at.
    pub recovering: Counter,
    pub recovered: Counter,
    /// Left as they are.
    pub failed: Counter,
}

/// What the control plane counts. The control thread is the only writer.
#[derive(Debug)]
pub struct SessionCounters {
    pub active: Counter,
    /// Of these, those whose every stream is held.
    pub paused: Counter,
    /// Recording sessions answered 200.
    pub total: Counter,
    pub refused: [Counter; RefuseCause::COUNT],
    pub ended: [Counter; EndCause::COUNT],
    /// Transitions of a session that its state does not allow: an answer of the engine that came twice or too late.
    pub transitions_refused: Counter,
    /// Sessions whose files were asked for a second time, in `--fallback-dir`.
    pub opened_elsewhere: Counter,
    /// Requests by method, in the order of `proto::sip::Method::ALL`.
    pub requests: [Counter; 16],
    /// Responses sent, by status code.
    pub responses: Box<[Counter; 700]>,
    /// Messages that could not be parsed at all and got no response.
    pub malformed: Counter,
    /// Requests answered 400.
    pub bad_requests: Counter,
    /// Requests of any method refused because of a rate.
    pub rate_limited: Counter,
    /// Requests answered 401, and those of them that had tried a password.
    pub challenged: Counter,
    pub auth_failed: Counter,
    pub retransmissions_received: Counter,
    pub retransmissions_sent: Counter,
    /// Messages that match no transaction or dialog and ask for no answer.
    pub stray: Counter,
    pub metadata_bodies: Counter,
    pub metadata_not_understood: Counter,
    /// Findings about metadata, in the order of `proto::metadata::Code::ALL`.
    pub findings: [Counter; FINDING_CODES_MAX],
    /// UPDATEs that asked for a complete description.
    pub snapshots_requested: Counter,
    pub ack_timeouts: Counter,
    /// Sessions that we ended and whose SRC could not be told: its connection is gone, and it has no other.
    pub byes_unsent: Counter,
    /// ACKs that should have answered an offer of ours, and did not, or not so that it could be used.
    pub answers_missing: Counter,
    /// Sessions that nobody refreshed in time, and our own refreshes: sent, and refused or not answered.
    pub sessions_expired: Counter,
    pub refreshes_sent: Counter,
    pub refreshes_failed: Counter,
    pub ports_free: Counter,
    pub ports_used: Counter,
    pub ports_cooling: Counter,
    pub transactions: Counter,
    pub transactions_full: Counter,
    /// Recordings whole under their final name, and those that could not be committed.
    pub committed: Counter,
    pub commits_failed: Counter,
    /// Media sockets, write blocks: recordings that ended with something missing.
    pub incomplete: Counter,
    /// Notices that found no room on their way to the callbacks.
    pub notices_dropped: Counter,
}

impl Default for SessionCounters {
    fn default() -> Self {
        SessionCounters {
            refused: [const { Counter::new() }; RefuseCause::COUNT],
            ended: [const { Counter::new() }; EndCause::COUNT],
            paused: Counter::new(),
            transitions_refused: Counter::new(),
            opened_elsewhere: Counter::new(),
            requests: [const { Counter::new() }; 16],
            responses: Box::new([const { Counter::new() }; 700]),
            active: Counter::new(),
            total: Counter::new(),
            malformed: Counter::new(),
            bad_requests: Counter::new(),
            rate_limited: Counter::new(),
            challenged: Counter::new(),
            auth_failed: Counter::new(),
            retransmissions_received: Counter::new(),
            retransmissions_sent: Counter::new(),
            stray: Counter::new(),
            metadata_bodies: Counter::new(),
            metadata_not_understood: Counter::new(),
            findings: [const { Counter::new() }; FINDING_CODES_MAX],
            snapshots_requested: Counter::new(),
            ack_timeouts: Counter::new(),
            byes_unsent: Counter::new(),
            answers_missing: Counter::new(),
            sessions_expired: Counter::new(),
            refreshes_sent: Counter::new(),
            refreshes_failed: Counter::new(),
            ports_free: Counter::new(),
            ports_used: Counter::new(),
            ports_cooling: Counter::new(),
            transactions: Counter::new(),
            transactions_full: Counter::new(),
            committed: Counter::new(),
            commits_failed: Counter::new(),
            incomplete: Counter::new(),
            notices_dropped: Counter::new(),
        }
    }
}
