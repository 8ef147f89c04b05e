//! Every queue, pool, loop, message and file has its limit here, with the reason for it.

use std::time::Duration;

// ---- messages ---------------------------------------------------------------------------------------------------

/// Start line and headers of one SIP message. Deployed SRCs send at most 4 KiB in all; 64 KiB is what a datagram could carry.
pub const SIP_HEAD_MAX: usize = 64 * 1024;
/// Body of one SIP message: the largest metadata accepted plus SDP and delimiters.
pub const SIP_BODY_MAX: usize = 512 * 1024;
/// Bytes of one TCP connection that wait to become messages: the largest message, and the reads that brought its end.
pub const SIP_BUFFERED_MAX: usize = SIP_HEAD_MAX + SIP_BODY_MAX + 8 * TCP_BUFFER_SIZE;
/// Header fields in one message, each line of a repeated field counted. The longest seen in the wild has 41.
pub const SIP_HEADERS_MAX: usize = 128;
/// Parts of one multipart body: deployed SRCs send two or three.
pub const MULTIPART_PARTS_MAX: usize = 16;
/// RFC 2046 §5.1.1.
pub const BOUNDARY_MAX: usize = 70;
/// One SDP body.
pub const SDP_MAX: usize = 64 * 1024;
/// m-lines of one offer, the removed ones included (they are never taken out again, RFC 3264 §8).
pub const M_LINES_MAX: usize = 32;
/// Formats of one m-line: the payload type is seven bits.
pub const FORMATS_MAX: usize = 128;
/// One rs-metadata body. Larger ones are kept as received, up to `SIP_BODY_MAX`, but not read.
pub const METADATA_MAX: usize = 256 * 1024;
/// Elements of one rs-metadata body.
pub const METADATA_ELEMENTS_MAX: usize = 10_000;
/// Nesting of one rs-metadata body; RFC 7865 needs four.
pub const METADATA_DEPTH_MAX: usize = 32;
/// Addresses of one participant. RFC 7865 §6.5.1 expects several; deployed SRCs send one.
pub const METADATA_AORS_MAX: usize = 32;
/// Attributes of one element.
pub const METADATA_ATTRIBUTES_MAX: usize = 64;
/// Lists of ids up to this long are scanned, longer ones get an index: comparing sixteen short texts costs less than hashing one.
pub const METADATA_SCANNED_MAX: usize = 16;
/// Extensions of one metadata body kept in the manifest, and their bytes: a few hundred bytes are what deployed SRCs send. The
/// body itself is on disk as it came.
pub const METADATA_EXTENSIONS_MAX: usize = 256;
pub const METADATA_EXTENSION_BYTES_MAX: usize = 64 * 1024;
/// Codes of findings; each has a counter.
pub const FINDING_CODES_MAX: usize = 64;
/// Findings of one code listed for one body: further ones say the same, and are counted.
pub const FINDINGS_PER_CODE: usize = 4;
/// Bytes of the id and of the value that a finding shows. An id is some 24 bytes, an address of record some 40.
pub const FINDING_TEXT_MAX: usize = 80;
/// A 200 that does not fit a datagram without fragments is lost by some firewalls, so answers stay below this where they can.
pub const ANSWER_BYTES_WANTED: usize = 1_300;
/// Findings in the body that explains a refusal: a few hundred bytes each, and the first ones are what has to be mended.
pub const EXPLAINED_FINDINGS_MAX: usize = 2;
/// Metadata in an answer over a stream: beyond it nobody is helped by having his own words back.
pub const ANSWER_METADATA_MAX: usize = 16 * 1024;

/// A name of this recorder (`--resource-id`, `--region`, `--group`): what DNS allows for one label and one more, and three of them
/// fit an answer to OPTIONS.
pub const RESOURCE_NAME_MAX: usize = 64;

// ---- SIP timers (RFC 3261 §17, Table 4) -------------------------------------------------------------------------

pub const T1: Duration = Duration::from_millis(500);
pub const T2: Duration = Duration::from_secs(4);
pub const T4: Duration = Duration::from_secs(5);
/// 64·T1: how long a transaction may wait for its peer.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(32);
/// The session timer that is asked of SRCs that know of timers and ask for none: the usual one in the field. An SRC that has
/// vanished is noticed after a quarter of an hour.
pub const SESSION_EXPIRES: Duration = Duration::from_secs(1_800);
/// No session timer is shorter (RFC 4028 §4).
pub const MIN_SE: Duration = Duration::from_secs(90);
/// How long before its time a session that nobody has refreshed is ended, at most; at most a third of it too (RFC 4028 §10).
pub const SESSION_END_AHEAD: Duration = Duration::from_secs(32);
/// After this a refresh is tried again that could not be sent, or was refused for the moment.
pub const REFRESH_AGAIN: Duration = Duration::from_secs(2);
/// Retry-After of a refusal for want of room: long enough to spread retries, short enough to come back after a drain.
pub const RETRY_AFTER_SECONDS: u32 = 10;
/// How long a drain waits for the answers to its BYEs before it stops without them.
pub const BYE_GRACE: Duration = Duration::from_secs(2);
/// An INVITE is refused with 503 when its files are not open by then: the SRC gives up at 32 s (timer B).
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

// ---- sessions ---------------------------------------------------------------------------------------------------

/// Recording sessions at once, when neither a flag nor the ports give fewer.
pub const SESSIONS_MAX: usize = 100_000;
/// A token bucket holds the tokens of this time: an SRC that comes back places its calls again at once.
pub const RATE_BURST: Duration = Duration::from_secs(2);
/// Sources whose rates are told apart, in sets of so many: 16,384 in 400 KiB. A fleet of SBCs has dozens; a flood of forged
/// addresses has any number.
pub const RATE_SETS: usize = 4_096;
pub const RATE_WAYS: usize = 4;
/// How long a nonce may be used: longer than any client waits before it answers, short for whoever has overheard it.
pub const NONCE_LIFETIME: Duration = Duration::from_secs(300);
/// Nonces whose use is remembered, 4 MiB; of what is forgotten nothing is taken again. At 2,000 calls a second, each with a nonce of
/// its own, those of the last half minute.
pub const NONCES_MAX: usize = 65_536;
/// Users of `--auth-users`: SBCs, not people.
pub const AUTH_USERS_MAX: usize = 10_000;
/// Bytes of that file.
pub const AUTH_FILE_MAX: u64 = 4 * 1024 * 1024;
/// Parameters of one Authorization: RFC 7616 knows eleven. They are compared with each other before anybody is known.
pub const AUTH_PARAMS_MAX: usize = 32;
/// Refusals of one cause that have a line each in the log, in this time; then one line says how many more there were.
pub const REFUSALS_LOGGED: u32 = 5;
pub const REFUSALS_LOGGED_WITHIN: Duration = Duration::from_secs(10);
/// Networks of `--allow`, and of `--deny`. Each new message is held against all of them; a firewall suits longer lists.
pub const NETWORKS_MAX: usize = 1_024;
/// Server transactions alive at once, per session slot: INVITE, BYE and two re-INVITEs within 32 s, and as many strays.
pub const TRANSACTIONS_PER_SESSION: usize = 8;
/// Transactions beyond the per-session share, so that a box with few slots can still refuse politely, and short calls find
/// room: INVITE and BYE of 2,000 calls/s are 128,000 in 32 s. There is memory for none of them before it comes.
pub const TRANSACTIONS_BASE: usize = 160_000;
/// Bytes of the responses that transactions keep for repeating; beyond it new INVITEs are refused. Answers of one busy hour
/// need 2 KiB x 3 x 2,000 calls/s x 32 s at most.
pub const TRANSACTION_BYTES_MAX: usize = 512 * 1024 * 1024;
/// SIP messages of one dialog that are kept while its files are being opened: INVITE, 100 and retransmissions.
pub const SIGNALS_PENDING_MAX: usize = 16;
/// Streams of one recording that are recorded; further m-lines are answered with port 0.
pub const STREAMS_PER_RECORDING_MAX: usize = 16;
/// rs-metadata bodies kept per recording: an update a second for an hour. Later ones are counted, not kept.
pub const METADATA_BODIES_MAX: usize = 3_600;
/// Bytes of ids, names and addresses remembered per recording for its manifest: some 10,000 people, or one metadata body of
/// the largest size and what came before it.
pub const METADATA_REMEMBERED_MAX: usize = 1024 * 1024;
/// How often control is told that a recording still gets media: what `sipreel sessions` shows is no older. A recorder of 10,000
/// sessions then has 1,000 such events a second, of a microsecond each.
pub const MEDIA_NOTED: Duration = Duration::from_secs(10);
/// The least --media-timeout and --transport-timeout: recordings are looked at every second, and told of four times in it.
pub const SILENCE_MIN: Duration = Duration::from_secs(3);
/// Characters that an operator may say of why a session is ended.
pub const NOTE_MAX: usize = 200;
/// How long an operator waits for control; it answers within a turn.
pub const ORDER_PATIENCE: Duration = Duration::from_secs(10);
/// Participants that ever sent into one stream. A conference in one mixed stream has dozens.
pub const SENDERS_PER_STREAM_MAX: usize = 256;
/// Findings about metadata listed in one manifest. A finding that comes again is counted, not listed again.
pub const FINDINGS_PER_RECORDING_MAX: usize = 256;
/// How often one code is logged: a trunk has the same fault in every call. Between, it is counted.
pub const FINDING_LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Items of metadata that one recording may have compared and merged in a second, and at once: a conference of 1,000 who are
/// 4,000 items may change 50 times a second. A small update of a large description costs milliseconds, which are those of all other calls.
pub const METADATA_WORK_PER_SECOND: u64 = 200_000;
/// Snapshots asked for in one recording, and how soon again: who has not answered three questions will not.
pub const SNAPSHOT_REQUESTS_MAX: u32 = 3;
pub const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(60);
/// Changes listed in one manifest, and the bytes of their ids and words: a conference of an hour in which somebody comes or goes
/// every second. Later ones are counted.
pub const EVENTS_PER_RECORDING_MAX: usize = 4_096;
pub const EVENTS_PER_RECORDING_BYTES: usize = 512 * 1024;
/// Codes of errors that are counted one by one in a recording: a session meets few kinds, and a hostile one no more memory.
pub const ERROR_CODES_PER_RECORDING: usize = 8;
/// Bytes of the last error's text that a recording keeps: a sentence with a path.
pub const ERROR_TEXT: usize = 200;
/// Communication sessions of one recording by which a later one is told to continue it, and the longest of their ids: SRCs
/// send one, turrets a handful; a base64 UUID has 24 bytes.
pub const CONTINUITY_SESSIONS_MAX: usize = 8;
pub const CONTINUITY_ID_MAX: usize = 256;
/// How long after it was lost a recording is continued: an SRC notices by a session timer at the latest (RFC 4028, 1,800 s).
pub const CONTINUED_WITHIN: Duration = Duration::from_secs(1_800);
/// Lost sessions that are remembered: those of a box whose SBC has died, twice over. 64 MiB with the longest ids.
pub const CONTINUITY_ENDED_MAX: usize = 200_000;
/// Bytes of the Call-ID shown in the session table; the manifest has it whole.
pub const TABLE_TEXT: usize = 64;
/// Attempts of one table read. A write takes some 20 ns, so a reader that fails this often met a writer that was preempted.
pub const TABLE_READ_ATTEMPTS: usize = 10_000;

// ---- threads ----------------------------------------------------------------------------------------------------

/// Events waiting for the control thread. At 2,000 calls/s this is two seconds of INVITE, ACK and BYE; then reactors
/// drop new datagrams (counted), and SIP retransmits them.
pub const EVENTS_MAX: usize = 16_384;
/// From so many waiting events on a source has a share of the queue, per reactor: as many messages a second. Below, everything
/// is taken. 2,000 messages are 700 calls; who sends more while control is behind is why it is.
pub const EVENTS_CROWDED: usize = EVENTS_MAX / 2;
pub const EVENTS_CROWDED_STREAMS: usize = EVENTS_MAX / 4 * 3;
pub const EVENTS_OF_SOURCE: u32 = 2_000;
/// Bytes of SIP messages of TCP connections that wait for room among the events, per reactor: 4,000 INVITEs. Then their
/// connections are closed.
pub const TCP_KEPT: usize = 16 * 1024 * 1024;
/// Commands waiting for one reactor.
pub const COMMANDS_MAX: usize = 16_384;
/// Recordings waiting to be hashed, synced and renamed.
pub const COMMITS_MAX: usize = 131_072;
/// Events that the control thread handles before it looks at its timers.
pub const EVENTS_PER_TURN: usize = 256;
/// How long the control thread sleeps when nothing is due: gauges are no older than this.
pub const CONTROL_IDLE: Duration = Duration::from_secs(1);
/// Reactors: one per core.
pub const REACTORS_MAX: usize = 64;

// ---- reactor ----------------------------------------------------------------------------------------------------

/// Submission queue entries: what one turn may queue before it submits.
pub const SQ_ENTRIES: u32 = 4_096;
/// Completion queue entries, the most that the kernel takes: all receive buffers, and with up to 20,000 descriptors (one
/// completion of each media socket and file) it cannot overflow. Beyond that the kernel keeps what does not fit.
pub const CQ_ENTRIES: u32 = 65_536;
/// Completions handled in one turn, before commands and timers get theirs.
pub const COMPLETIONS_PER_TURN: usize = 8_192;
/// Commands handled in one turn.
pub const COMMANDS_PER_TURN: usize = 256;
/// Receive buffers for media, per reactor: 10 ms at 200,000 packets/s. The socket buffers absorb what is longer.
pub const MEDIA_BUFFERS: u16 = 2_048;
/// One media receive buffer: recvmsg header, address and control, then a datagram of the usual MTU.
pub const MEDIA_BUFFER_SIZE: usize = 2_048;
/// Receive buffers for SIP datagrams, per reactor.
pub const SIP_BUFFERS: u16 = 64;
/// One SIP receive buffer: recvmsg header, address and control, then the largest datagram.
pub const SIP_BUFFER_SIZE: usize = 68 * 1024;
/// Receive buffers for TCP connections, per reactor.
pub const TCP_BUFFERS: u16 = 256;
pub const TCP_BUFFER_SIZE: usize = 8 * 1024;
/// SIP connections in all, TCP and TLS, and slots of each reactor, since the kernel may give all to one. An SBC opens a handful;
/// half of `DESCRIPTORS_RESERVED`, so that they never take what files need.
pub const TCP_CONNECTIONS: usize = 1_024;
/// Connections of one source, unless --max-connections-per-source says otherwise: more than any SBC opens, a quarter of all.
pub const CONNECTIONS_PER_SOURCE: usize = 256;
/// TLS handshakes that may begin per reactor and second: one costs 0.14 ms (ECDSA P-256) or 0.86 ms (RSA 2048), in which nothing
/// else is done, so that a flood of them takes a fifth of a core at most.
pub const TLS_HANDSHAKES_PER_SECOND: u32 = 200;
/// From accept to the end of the TLS handshake; two round trips and a slow HSM fit many times.
pub const TLS_HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// One file of --tls-cert, --tls-key, --tls-client-ca: a whole bundle of public CAs has 250 KB.
pub const TLS_FILE_MAX: u64 = 4 * 1024 * 1024;
/// Names of one peer's certificate that are kept, and bytes of one: a SIP URI or a DNS name (255, RFC 1035).
pub const CERTIFICATE_NAMES_MAX: usize = 16;
pub const CERTIFICATE_NAME_MAX: usize = 256;
/// How often a reactor says in the log that a handshake failed; all are counted.
pub const TLS_FAILURE_LOG: Duration = Duration::from_secs(1);
/// Bytes waiting to be sent on one TCP connection; a peer that does not read is disconnected.
pub const TCP_SEND_QUEUE: usize = 1024 * 1024;
/// Bytes of one send: all that a turn's commands queue on one connection, as a rule.
pub const TCP_SEND_AT_ONCE: usize = 256 * 1024;
/// Messages among them: small ones cost more than their bytes.
pub const TCP_SENDS_QUEUED: usize = 4_096;
/// A TCP peer that has begun a message must finish it within this time: the largest one has 600 KB.
pub const TCP_MESSAGE_TIMEOUT: Duration = Duration::from_secs(15);
/// A peer that has closed its side gets answers for this long: that of a transaction.
pub const TCP_HALF_CLOSED_TIME: Duration = TRANSACTION_TIMEOUT;
/// A peer that is silent for so long is asked by the kernel (TCP keepalive), and when it does not answer the connection is reset
/// half a minute later: a host that lost its power is known before its calls are over.
pub const TCP_KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
pub const TCP_KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
pub const TCP_KEEPALIVE_TRIES: u32 = 3;
/// How long a connection that we close waits for its peer to take what is queued.
pub const TCP_CLOSE_TIME: Duration = Duration::from_secs(5);
/// A TCP connection without a message or keepalive for this long is closed; RFC 5626 §4.4.1 keepalives come every 95-120 s.
pub const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(3_600);
/// How long a reactor, control or the directory thread runs at a time when others want its core, and so how soon it is given it:
/// the least that Linux takes.
pub const REACTOR_SLICE: Duration = Duration::from_micros(100);
/// Least time the reactor sleeps while media arrives: recorders have no latency to protect, batches are cheaper.
pub const BATCH_WAIT: Duration = Duration::from_millis(2);
/// The same while an INVITE waits for its files or a peer for its answer.
pub const BATCH_WAIT_BUSY: Duration = Duration::from_micros(200);
/// Most time the reactor sleeps while a recording is ending, when nothing comes.
pub const ENDING_WAIT: Duration = Duration::from_millis(10);
/// Completions that end the sleep early.
pub const BATCH_COMPLETIONS: usize = 512;
/// How long a start waits in all for media ports that are taken, and how often it looks.
pub const BIND_PATIENCE: Duration = Duration::from_millis(500);
pub const BIND_RETRY: Duration = Duration::from_millis(10);
/// How long a reactor that stops waits for bytes that TCP peers have not taken yet.
pub const STOP_GRACE: Duration = Duration::from_millis(500);
/// How often blocks are looked at for their age, and sockets for their drops.
pub const TICK: Duration = Duration::from_millis(100);
/// Every open recording is looked at at least this often.
pub const SWEEP_MAX: Duration = Duration::from_secs(1);
/// How long ports stay open after the dialog's end: what the kernel received before the BYE is still on its way to us.
pub const CLOSE_LINGER: Duration = Duration::from_millis(100);
/// The same when datagrams still wait in the sockets, which only happens on a box that is behind with its work.
pub const CLOSE_LINGER_MAX: Duration = Duration::from_secs(10);
/// How long after that a recording waits for what came to other reactors: they answer within a turn.
pub const RECALL_GRACE: Duration = Duration::from_secs(1);
/// Receive buffer asked for on each media socket: 4 s of a 50 packet/s stream.
pub const MEDIA_RCVBUF: usize = 256 * 1024;
/// Receive buffer asked for on each steered socket: some 60,000 packets as the kernel counts their memory, 200 ms at 300,000 a
/// second.
pub const STEERED_RCVBUF: usize = 64 * 1024 * 1024;
/// Ports next to the media range that are tried for a steered socket: each reactor takes two.
pub const STEERED_BIND_ATTEMPTS: usize = 1_024;
/// Receive buffer asked for on each SIP socket: 1,000 INVITEs of 4 KiB.
pub const SIP_RCVBUF: usize = 4 * 1024 * 1024;
/// File descriptors kept back from the media ports: TCP connections, rings, stats clients, files being committed.
pub const DESCRIPTORS_RESERVED: usize = 2_048;

// ---- AF_XDP -----------------------------------------------------------------------------------------------------

/// Descriptors of one receive ring. A queue brings 1,000,000 packets/s and is reaped every 2 ms; a reactor that does not get
/// its core for 130 ms, as it happens in virtual machines, finds them all.
pub const XDP_RING: u32 = 131_072;
/// Frames of one socket's memory, 256 MiB, and descriptors of its fill ring: a receive ring full of them. A zero-copy driver
/// keeps some for its own ring, and has that much less to be read late.
pub const XDP_FRAMES: u32 = XDP_RING;
/// One frame: the kernel keeps 256 bytes in front, the rest holds a frame of the usual MTU. Half a page, so that it never
/// crosses one.
pub const XDP_FRAME_SIZE: u32 = 2_048;
/// Frames read between two looks at the ring and given back together.
pub const XDP_BATCH: usize = 1_024;
/// Lines of a frame that are prefetched: 20 ms of G.711 with all headers.
pub const XDP_PREFETCH_LINES: usize = 4;
/// Frames of one queue that are read before anything else gets its turn: two receive rings.
pub const XDP_BATCHES_PER_TURN: usize = 256;
/// How many frames ahead a frame, then its recording, then its stream are prefetched.
pub const XDP_PREFETCH_FRAME: usize = 24;
pub const XDP_PREFETCH_RECORDING: usize = 14;
pub const XDP_PREFETCH_STREAM: usize = 6;
/// How often the host's addresses and the interfaces of AF_XDP sockets are looked at.
pub const INTERFACE_WATCH: Duration = Duration::from_secs(1);
/// A receive time older than this is not one, but what was in the memory before.
pub const XDP_TIME_MAX: Duration = Duration::from_secs(60);

const _: () =
    assert!(XDP_RING.is_power_of_two() && XDP_FRAMES.is_power_of_two() && XDP_FRAME_SIZE.is_power_of_two());
const _: () = assert!(XDP_BATCH <= XDP_RING as usize);

// ---- BPF --------------------------------------------------------------------------------------------------------

/// What the verifier may write about a program that it refuses: a line for each instruction of each way through it. Kernels
/// since 6.4 keep the end of what is longer.
pub const BPF_LOG_SIZE: usize = 64 * 1024;
/// Bytes of it in an error: the last lines say why.
pub const BPF_LOG_TAIL: usize = 512;
/// Addresses at which media is taken from an interface. A host has a few; one that announces anycast has hundreds.
pub const MEDIA_ADDRESSES_MAX: u32 = 4_096;
/// Receive queues of an interface: the widest NICs have fewer.
pub const XDP_QUEUES_MAX: u32 = 1_024;
/// sk_lookup programs of one network namespace: the kernel takes no more.
pub const SK_LOOKUP_PROGRAMS_MAX: usize = 64;

// ---- disk -------------------------------------------------------------------------------------------------------

/// What the calibration of a disk takes: files as some hundred calls have them open, two seconds in which rounds of writes
/// begin, and bytes for a drive of 2 GB/s in that time.
pub const DISK_PROBE_FILES: usize = 256;
pub const DISK_PROBE_TIME: Duration = Duration::from_secs(2);
pub const DISK_PROBE_BYTES: u64 = 4 << 30;
/// Different problems listed in one manifest.
pub const PROBLEMS_MAX: usize = 64;
/// Jobs waiting for the directory thread, per reactor: an INVITE, its metadata and its end, for each of 4,000 calls.
pub const DIRECTORY_JOBS_MAX: usize = 16_384;
/// One write block, unless --block-size says otherwise. 64 KiB makes one write of 285 G.711 packets; smaller blocks cost CPU and,
/// at 4 KiB, packets.
pub const BLOCK_SIZE: usize = 64 * 1024;
/// Direct writes begin and end at multiples of this: the block size of file systems and disks.
pub const DISK_ALIGNMENT: usize = 4_096;
/// The least: twice as many writes in two thirds of the memory. A SIP datagram that is longer is cut in the pcap, where its record
/// says so; deployed SRCs send at most 4 KiB.
pub const BLOCK_SIZE_MIN: usize = 32 * 1024;
/// The largest write block: beyond it a write costs no less, and each open recording has one.
pub const BLOCK_SIZE_MAX: usize = 1024 * 1024;
/// Blocks of one file waiting behind the one write in flight; then its packets are dropped and counted.
pub const WRITES_QUEUED_PER_FILE: usize = 8;
/// Workers of the kernel that write for one reactor.
pub const DISK_WORKERS: u32 = 16;
/// Bytes of write blocks beyond one per file, of a reactor and of each of its files: writes in flight while the next block
/// fills. A call of two G.711 streams brings 23 KiB a second, so that a disk may stall for 1.7 s and no packet is lost; with 24 KiB
/// a stall in the middle of a minute at 230 MB/s cost 13,514 of 60 million packets.
pub const SPARE_BYTES: usize = 32 * 1024 * 1024;
pub const SPARE_BYTES_PER_FILE: usize = 40 * 1024;
/// Blocks more per file of a reactor where a call's packets may come to several: the two flows of a stream, RTP and RTCP, come to
/// two of them at most, and each reactor has its share of all flows.
pub const BLOCKS_PER_FILE_LENT: usize = 1;
/// Attempts to commit a recording before it is left as `.part` and reported.
pub const COMMIT_ATTEMPTS: u32 = 3;
/// Bytes read at once of a recording that is recovered.
pub const RECOVERY_READ: usize = 1024 * 1024;
/// Bytes of them read in a second: what runs comes first. The hour that 10,000 calls of 3 MiB may take is one in which nothing
/// waits for them.
pub const RECOVERY_RATE: u64 = 64 * 1024 * 1024;
/// How far before the start of a dead recorder its recordings are looked for: it may have had its clock set back.
pub const RECOVERY_SLACK: Duration = Duration::from_secs(25 * 3_600);
/// Recordings committed together: one sync of the file system serves them all.
pub const COMMIT_BATCH: usize = 1_024;
/// The least time between two syncs. Nobody waits for a commit, and a sync costs much the same for one recording as for
/// hundreds: at 1,000 calls/s syncing whatever had gathered meanwhile was a sixth of the recorder's CPU time.
pub const COMMIT_INTERVAL: Duration = Duration::from_millis(200);

const _: () = assert!(
    BLOCK_SIZE_MIN.is_multiple_of(DISK_ALIGNMENT)
        && BLOCK_SIZE.is_multiple_of(DISK_ALIGNMENT)
        && BLOCK_SIZE_MAX.is_multiple_of(DISK_ALIGNMENT)
);
const _: () = assert!(
    MEDIA_BUFFERS.is_power_of_two() && SIP_BUFFERS.is_power_of_two() && TCP_BUFFERS.is_power_of_two()
);
// The completion queue holds every buffer, and an end of every operation on 20,000 descriptors, at once.
const _: () = assert!(
    CQ_ENTRIES as usize
        > MEDIA_BUFFERS as usize + SIP_BUFFERS as usize + TCP_BUFFERS as usize + TCP_CONNECTIONS * 2 + 20_000
);
// A block holds the largest record of a media datagram.
const _: () = assert!(BLOCK_SIZE_MIN > MEDIA_BUFFER_SIZE + 128 && BLOCK_SIZE_MIN <= BLOCK_SIZE);

// ---- media ------------------------------------------------------------------------------------------------------

/// SSRCs told apart per stream; packets of further ones are recorded and counted under the last.
pub const SSRCS_PER_STREAM: usize = 8;
/// A sequence jump up to this is loss; beyond it the source has restarted (RFC 3550 A.1, MAX_DROPOUT).
pub const SEQ_DROPOUT_MAX: u16 = 3_000;
/// Packets this far behind the newest are late, not a restart (RFC 3550 A.1, MAX_MISORDER).
pub const SEQ_MISORDER_MAX: u16 = 100;
/// RTP time that runs away from arrival time by more than this is a new media clock: raw files are placed by arrival again.
pub const CLOCK_JUMP_MAX: Duration = Duration::from_secs(2);
/// Silence written to a raw file at once, by arrival time. No call is without any packet for so long; what looks like it is
/// a step of the wall clock, and is left out.
pub const RAW_SILENCE_MAX: Duration = Duration::from_secs(4 * 3_600);
/// Bytes per second of a raw file on the media clock: L16 stereo at 48 kHz. An offer that claims more is recorded as rtpdump,
/// so that no SDP decides how much silence is written.
pub const RAW_BYTES_PER_SECOND_MAX: u32 = 192_000;
/// TCP connections of one dialog told apart in the pcap; an SRC that reconnects for every request takes the oldest's place.
pub const TCP_CONVERSATIONS: usize = 4;
/// A label as part of a raw file's name; with index and extension it stays far below NAME_MAX (255).
pub const LABEL_IN_NAME_MAX: usize = 64;
/// What one call of the packet path asks for at most: a block sent off, silence, a late packet's own write.
pub const WRITES_PER_PACKET: usize = 3;

/// How often a stream's sender is told what came of it, on average: the least that RFC 3550 §6.2 knows. A report of 100 bytes
/// is a 400th of a G.711 stream, far below the twentieth that is RTCP's.
pub const RTCP_INTERVAL: Duration = Duration::from_secs(5);
/// Bytes of one RTCP packet that we send: every source of a stream, and our CNAME.
pub const RTCP_PACKET_MAX: usize = 256;

// The window of sequence numbers that tells late from duplicate is 128 bits wide.
const _: () = assert!(SEQ_MISORDER_MAX < 128);

/// Bytes of a G.711 packet as a pcap record, 20 ms: what is prefetched of the room for the next one.
pub const RECORD_USUAL: usize = 230;
/// Bytes of a line of the processor's caches.
pub const CACHE_LINE: usize = 64;
/// How many packets ahead a packet's recording and then its stream are prefetched: memory takes about as long as a packet,
/// and the first address is needed to know the second.
pub const PREFETCH_RECORDING: usize = 8;
pub const PREFETCH_STREAM: usize = 4;

// ---- finding recordings -------------------------------------------------------------------------------------

/// Bytes of a manifest that are read: participants and metadata bodies up to their limits, with their hashes.
pub const MANIFEST_READ_MAX: u64 = 64 * 1024 * 1024;
/// Recordings that one filter may find: they are sorted in memory. One communication session has one, after a failover two.
pub const RECORDINGS_FOUND_MAX: usize = 100_000;

// ---- stats socket -----------------------------------------------------------------------------------------------

/// Clients served at once; further ones wait in the backlog.
pub const STATS_CLIENTS: usize = 16;
/// One command line.
pub const STATS_LINE_MAX: usize = 1_024;
/// A stats client that neither asks nor reads for this long is closed.
pub const STATS_TIMEOUT: Duration = Duration::from_secs(30);

// ---- callbacks --------------------------------------------------------------------------------------------------

/// Notices waiting to become events. At 2,000 calls/s this is ten seconds of them; further ones are counted and lost.
pub const NOTICES_MAX: usize = 65_536;
/// Endpoints, each with its own threads: an application, an archive, a monitor, and as many again.
pub const CALLBACK_ENDPOINTS: usize = 8;
/// Bytes of an endpoint's URL.
pub const CALLBACK_URL_MAX: usize = 2_048;
/// A secret that cannot be guessed: 128 bits.
pub const CALLBACK_SECRET_MIN: usize = 16;
/// Secrets in use at once: the new one, and the old one until every receiver has the new.
pub const CALLBACK_SECRETS_MAX: usize = 2;
/// A file with secrets or certificates. The certificates that an operating system trusts take 250 KiB.
pub const CALLBACK_FILE_MAX: u64 = 4 * 1024 * 1024;
/// The least that --callback-queue-size takes: some files, of which the oldest is taken away when all are full.
pub const CALLBACK_QUEUE_MIN: u64 = 4 * 1024 * 1024;
/// One file of the queue: some 1,500 events, which one endpoint reads at once when it is behind.
pub const CALLBACK_SEGMENT: u64 = 1024 * 1024;
/// Bytes of the newest events that are in memory too: endpoints that keep up never read a file.
pub const CALLBACK_RECENT: usize = 4 * 1024 * 1024;
/// Events read from memory at once.
pub const CALLBACK_BATCH: usize = 256;
/// Requests to one endpoint at once; events of one recording go one after the other. A receiver 20 ms away takes 400 a second.
pub const CALLBACK_LANES: usize = 8;
/// Events of one endpoint that wait in memory before more are read.
pub const CALLBACK_WINDOW: usize = 1_024;
/// The first rest after an attempt that failed, doubled with each further one, and the longest: a receiver that is back is
/// found within a minute, and one that is overloaded is not kept down.
pub const CALLBACK_RETRY: Duration = Duration::from_millis(500);
pub const CALLBACK_RETRY_MAX: Duration = Duration::from_secs(60);
/// The longest Retry-After that is kept, and the rest after 410: whoever says that he is gone is asked once an hour.
pub const CALLBACK_REST_MAX: Duration = Duration::from_secs(3_600);
/// Attempts of an event that the receiver has read and refuses (400, 413, 415, 422): some minutes, in which somebody can
/// mend the receiver. Then it makes room for those behind it.
pub const CALLBACK_REFUSALS: u32 = 12;
/// One request, from the name's resolution to the answer's end; and the part of it in which a connection must be there.
pub const CALLBACK_TIMEOUT: Duration = Duration::from_secs(10);
pub const CALLBACK_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an answer's head, and those of its body that are read so that the connection can serve the next request.
pub const CALLBACK_HEAD_MAX: usize = 16 * 1024;
pub const CALLBACK_BODY_MAX: u64 = 16 * 1024;
/// How often the queue is synced: a power failure takes what is younger. A crash of the process takes nothing.
pub const CALLBACK_SYNC: Duration = Duration::from_secs(1);
/// How long the end of the recorder waits for the last deliveries. What is left goes out at the next start.
pub const CALLBACK_GRACE: Duration = Duration::from_secs(3);
/// An alarm that goes on is repeated after this time, and cleared when nothing has happened for that.
pub const ALARM_REPEAT: Duration = Duration::from_secs(600);
pub const ALARM_QUIET: Duration = Duration::from_secs(60);
