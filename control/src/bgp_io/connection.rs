//! The tasks around one connection: dial, read, write. What happens is told to the driver.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fairlead_bgp::ConnectionId;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};

/// How long the last bytes of a connection may take after it was closed by us.
const LINGER: Duration = Duration::from_secs(2);
/// Octets read at once; at least one whole message.
const READ: usize = 64 * 1024;

/// Something that a task tells the driver.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A peer dialled us.
    Accepted(TcpStream, SocketAddr),
    /// A dial was answered.
    Connected(ConnectionId, TcpStream),
    /// A dial failed.
    Failed(ConnectionId, io::Error),
    /// Bytes came in.
    Bytes(ConnectionId, Bytes),
    /// The connection is gone.
    Closed(ConnectionId, String),
}

/// Where the tasks of connections tell what happens.
pub(super) type Arrivals = mpsc::Sender<Arrival>;

/// Octets that were handed to the kernel. They do not stand in line with what arrives: who is told more than it takes
/// hears of that first, and is told the next at once.
pub(super) type Written = (ConnectionId, usize);

/// What the peer sends.
#[derive(Debug)]
struct Incoming {
    half: OwnedReadHalf,
    /// From before octets are read until the driver can find them among the arrivals.
    taking: AtomicBool,
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    incoming: Arc<Incoming>,
    reader: AbortHandle,
    outgoing: mpsc::UnboundedSender<Bytes>,
    writer: JoinHandle<()>,
}

impl Connection {
    /// Starts to read and write.
    pub(super) fn open(
        id: ConnectionId,
        stream: TcpStream,
        arrivals: &Arrivals,
        written: &mpsc::UnboundedSender<Written>,
    ) -> Self {
        let (read_half, write_half) = stream.into_split();
        let (outgoing, queue) = mpsc::unbounded_channel();
        let incoming = Arc::new(Incoming {
            half: read_half,
            taking: AtomicBool::new(false),
        });
        let writing = write(id, write_half, queue, written.clone(), arrivals.clone());
        Self {
            reader: tokio::spawn(read(id, incoming.clone(), arrivals.clone())).abort_handle(),
            incoming,
            writer: tokio::spawn(writing),
            outgoing,
        }
    }

    /// Whether there are octets that the reader has not taken yet. Those that it has taken are among the arrivals.
    pub(super) fn has_unread(&self) -> bool {
        let socket = SockRef::from(self.incoming.half.as_ref());
        let mut octet = [MaybeUninit::uninit()];
        // The socket does not block; the end of the stream is no octet.
        let waits = matches!(socket.peek(&mut octet), Ok(1));
        // In this order: a reader that took them before has told the driver, or is about to.
        waits || self.incoming.taking.load(Ordering::SeqCst)
    }

    /// Queues bytes.
    pub(super) fn send(&self, bytes: Bytes) {
        // A writer that is gone has said so: the connection is about to be closed.
        let _ = self.outgoing.send(bytes);
    }

    /// Writes what is queued, then closes. The task ends then, or after a time without progress.
    pub(super) fn close(self) -> JoinHandle<()> {
        self.reader.abort();
        drop(self.outgoing);
        let mut writer = self.writer;
        tokio::spawn(async move {
            if tokio::time::timeout(LINGER, &mut writer).await.is_err() {
                writer.abort();
            }
        })
    }

    /// Closes at once.
    pub(super) fn abandon(&self) {
        self.reader.abort();
        self.writer.abort();
    }
}

async fn read(id: ConnectionId, incoming: Arc<Incoming>, arrivals: Arrivals) {
    let mut buffer = BytesMut::new();
    let why = loop {
        if let Err(error) = incoming.half.readable().await {
            break error.to_string();
        }
        // A driver that is gone does not want to know.
        let Ok(place) = arrivals.reserve().await else {
            return;
        };
        buffer.reserve(READ);
        incoming.taking.store(true, Ordering::SeqCst);
        let taken = incoming.half.try_read_buf(&mut buffer);
        if matches!(taken, Ok(1..)) {
            place.send(Arrival::Bytes(id, buffer.split().freeze()));
        }
        incoming.taking.store(false, Ordering::SeqCst);
        match taken {
            Ok(0) => break "closed by the peer".to_owned(),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => break error.to_string(),
            Ok(_) | Err(_) => {}
        }
    };
    let _ = arrivals.send(Arrival::Closed(id, why)).await;
}

async fn write(
    id: ConnectionId,
    mut half: OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<Bytes>,
    written: mpsc::UnboundedSender<Written>,
    arrivals: Arrivals,
) {
    while let Some(bytes) = queue.recv().await {
        let octets = bytes.len();
        if let Err(error) = half.write_all(&bytes).await {
            let closed = Arrival::Closed(id, error.to_string());
            let _ = arrivals.send(closed).await;
            return;
        }
        // A driver that is gone does not want to know.
        if written.send((id, octets)).is_err() {
            return;
        }
    }
    // The peer may have closed first.
    let _ = half.shutdown().await;
}
