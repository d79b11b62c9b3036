//! The task that owns the speaker: feeds it what happens and does what it asks.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_bgp::record::Input;
use fairlead_bgp::{ConnectionId, ConnectionRequest, Event, Password, PeerConfig, Speaker, bfd};
use futures::future::join_all;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::bfd::Watch;
use super::connection::{Arrival, Arrivals, Connection, Written};
use super::publisher::{Publisher, Turn};
use super::record::Record;
use super::signature::sign;
use super::{BgpSnapshot, Command, LearntRoutes, Look, socket};

/// Arrivals that may wait for the driver; readers wait when it is full.
const ARRIVALS: usize = 64;
/// Changes of learnt routes are gathered this long before they are published.
const GATHER: Duration = Duration::from_millis(5);
/// How long to wait after a failure to accept, which is a lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// See the module.
pub(super) struct Driver {
    speaker: Speaker,
    /// What it is told is written down here.
    record: Option<Record>,
    listening: Vec<SocketAddr>,
    listeners: Vec<Arc<TcpListener>>,
    accepting: JoinSet<()>,
    /// The peers whose connections must be signed; `false`: the kernel would not, so none is let in.
    signed: BTreeMap<IpAddr, (Password, bool)>,
    watch: Option<Watch>,
    /// The BFD sessions that peers want.
    watched: BTreeMap<bfd::Key, bfd::Timing>,
    arrivals: Arrivals,
    arrived: mpsc::Receiver<Arrival>,
    writing: mpsc::UnboundedSender<Written>,
    written: mpsc::UnboundedReceiver<Written>,
    dials: BTreeMap<ConnectionId, AbortHandle>,
    connections: BTreeMap<ConnectionId, Connection>,
    closing: Vec<JoinHandle<()>>,
    /// When changes of learnt routes will be published.
    publish_at: Option<Instant>,
    publisher: Publisher,
    cancel: CancellationToken,
}

impl Driver {
    pub(super) fn new(
        speaker: Speaker,
        record: Option<Record>,
        listeners: Vec<TcpListener>,
        learnt: watch::Sender<Arc<LearntRoutes>>,
        events: broadcast::Sender<Event>,
        cancel: CancellationToken,
    ) -> Self {
        let (arrivals, arrived) = mpsc::channel(ARRIVALS);
        let (writing, written) = mpsc::unbounded_channel();
        let listening = listeners
            .iter()
            .filter_map(|listener| listener.local_addr().ok())
            .collect();
        let listeners: Vec<_> = listeners.into_iter().map(Arc::new).collect();
        let mut accepting = JoinSet::new();
        for listener in &listeners {
            accepting.spawn(accept(listener.clone(), arrivals.clone()));
        }
        Self {
            speaker,
            record,
            listening,
            listeners,
            accepting,
            signed: BTreeMap::new(),
            watch: None,
            watched: BTreeMap::new(),
            arrivals,
            arrived,
            writing,
            written,
            dials: BTreeMap::new(),
            connections: BTreeMap::new(),
            closing: Vec::new(),
            publish_at: None,
            publisher: Publisher::start(learnt, events),
            cancel,
        }
    }

    /// Runs until the token is cancelled or nobody holds a handle any more.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            self.drain();
            let wake = [self.speaker.poll_timeout(), self.publish_at]
                .into_iter()
                .flatten()
                .min();
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => break,
                Some(event) = next_change(&mut self.watch) => {
                    let now = now();
                    self.write(now, || Input::Bfd(event.key, event.standing));
                    self.speaker.handle_bfd(&event.key, event.standing, now);
                }
                () = sleep_until_some(wake) => self.wake(),
                command = commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => break,
                },
                Some((id, octets)) = self.written.recv() => {
                    let now = now();
                    self.write(now, || Input::Written(id, octets));
                    self.speaker.handle_written(id, octets, now);
                }
                Some(arrival) = self.arrived.recv() => self.handle(arrival, now()),
            }
        }
        self.accepting.abort_all();
        for dial in self.dials.values() {
            dial.abort();
        }
        for connection in self.connections.values() {
            connection.abandon();
        }
    }

    fn wake(&mut self) {
        let now = now();
        if self.publish_at.is_some_and(|at| at <= now) {
            match self.publisher.turn() {
                Some(turn) => self.publish(Some(turn)),
                None => self.publish_at = Some(now + GATHER),
            }
        }
        self.hear_silent(now);
        self.write(now, || Input::Timeout);
        self.speaker.handle_timeout(now);
    }

    /// Before a peer is given up: what it has said while this task was held up counts.
    fn hear_silent(&mut self, now: Instant) {
        let silent: Vec<_> = self.speaker.silent(now).collect();
        if silent.is_empty() {
            return;
        }
        // In this order: what a reader takes meanwhile is found among the arrivals.
        for id in silent {
            let connection = self.connections.get(&id);
            if connection.is_some_and(Connection::has_unread) {
                debug!(
                    ?id,
                    "late: the peer has said something that is still to be read"
                );
                self.write(now, || Input::Unread(id));
                self.speaker.handle_unread(id, now);
            }
        }
        for _ in 0..self.arrived.len() {
            if let Ok(arrival) = self.arrived.try_recv() {
                self.handle(arrival, now);
                self.drain();
            }
        }
    }

    /// Writes down what the speaker is about to be told, if it is recorded.
    fn write(&mut self, now: Instant, input: impl FnOnce() -> Input) {
        if let Some(record) = &mut self.record {
            record.write(input(), now);
        }
    }

    async fn obey(&mut self, command: Command) {
        let now = now();
        // An asker that went away does not want its answer.
        match command {
            Command::SetPeers(peers) => {
                self.sign_incoming(&peers);
                self.watched = peers.iter().filter_map(PeerConfig::bfd_session).collect();
                self.be_watched();
                if let Some(record) = &mut self.record {
                    let input = record.passwords.hide(&peers);
                    record.write(input, now);
                }
                self.speaker.set_peers(peers, now);
            }
            Command::SetRanges(ranges) => {
                self.write(now, || Input::Ranges(ranges.clone()));
                self.speaker.set_ranges(ranges, now);
            }
            Command::SetBfd(watch) => {
                self.watch = watch;
                self.be_watched();
            }
            Command::SetAnnouncements(announcements) => {
                self.write(now, || Input::Announcements(announcements.clone()));
                self.speaker.set_announcements(announcements, now);
            }
            Command::Refresh(peer, family, answer) => {
                self.write(now, || Input::Refresh(peer.clone(), family));
                let _ = answer.send(self.speaker.request_refresh(&peer, family, now));
            }
            Command::Peers(answer) => {
                let _ = answer.send(self.speaker.peers(now));
            }
            Command::Snapshot(answer) => {
                let _ = answer.send(self.snapshot(now));
            }
            Command::Look(Look(question)) => question(&self.speaker, now),
            Command::History(answer) => self.publisher.history(answer),
            Command::Shutdown(text, answer) => {
                self.write(now, || Input::Shutdown(text.clone()));
                self.speaker.shutdown(&text, now);
                self.drain();
                self.wait_for_last_words().await;
                let _ = answer.send(());
            }
        }
    }

    fn be_watched(&self) {
        if let Some(watch) = &self.watch {
            watch.follow(self.watched.clone());
        }
    }

    /// Makes the listening sockets want the signatures of peers that have a password, and of no other.
    fn sign_incoming(&mut self, peers: &[PeerConfig]) {
        let wanted: BTreeMap<IpAddr, Password> = peers
            .iter()
            .filter_map(|peer| Some((peer.address, peer.password.clone()?)))
            .collect();
        let known = std::mem::take(&mut self.signed);
        for (address, (_, is_signed)) in &known {
            if *is_signed
                && !wanted.contains_key(address)
                && let Err(error) = self.sign_listeners(*address, None)
            {
                warn!(peer = %address, %error, "its connections are still wanted signed");
            }
        }
        for (address, password) in wanted {
            let is_signed = match known.get(&address) {
                Some((before, true)) if *before == password => true,
                Some(_) | None => match self.sign_listeners(address, Some(&password)) {
                    Ok(()) => true,
                    Err(error) => {
                        warn!(peer = %address, %error, "TCP MD5 is not possible: its connections are refused");
                        false
                    }
                },
            };
            self.signed.insert(address, (password, is_signed));
        }
    }

    fn sign_listeners(&self, peer: IpAddr, password: Option<&Password>) -> std::io::Result<()> {
        for listener in &self.listeners {
            if listener.local_addr()?.is_ipv4() == peer.is_ipv4() {
                sign(listener, peer, password)?;
            }
        }
        Ok(())
    }

    /// Waits for connections that are being closed. All sessions are down by then, so what
    /// arrives meanwhile concerns nobody; it is taken so that no writer waits for us.
    async fn wait_for_last_words(&mut self) {
        let mut closing = join_all(std::mem::take(&mut self.closing));
        loop {
            tokio::select! {
                _ = &mut closing => return,
                Some(_) = self.arrived.recv() => {}
            }
        }
    }

    fn snapshot(&self, now: Instant) -> BgpSnapshot {
        let peers = self.speaker.peers(now);
        BgpSnapshot {
            config: self.speaker.config().clone(),
            listening: self.listening.clone(),
            advertised: peers
                .iter()
                .map(|peer| (peer.name.clone(), self.speaker.adj_rib_out(&peer.name)))
                .collect(),
            routes: self.speaker.loc_rib(),
            peers,
        }
    }

    fn handle(&mut self, arrival: Arrival, now: Instant) {
        match arrival {
            Arrival::Accepted(stream, remote) => self.let_in(stream, remote, now),
            Arrival::Connected(id, stream) => {
                // A dial that was given up meanwhile is not known any more.
                if self.dials.remove(&id).is_none() {
                    return;
                }
                match stream.local_addr() {
                    Ok(local) => {
                        let connection =
                            Connection::open(id, stream, &self.arrivals, &self.writing);
                        self.connections.insert(id, connection);
                        self.write(now, || Input::Connected(id, local));
                        self.speaker.handle_connected(id, local, now);
                    }
                    Err(error) => {
                        let why = error.to_string();
                        self.write(now, || Input::ConnectFailed(id, why.clone()));
                        self.speaker.handle_connect_failed(id, &why, now);
                    }
                }
            }
            Arrival::Failed(id, error) => {
                self.dials.remove(&id);
                let why = error.to_string();
                self.write(now, || Input::ConnectFailed(id, why.clone()));
                self.speaker.handle_connect_failed(id, &why, now);
            }
            Arrival::Bytes(id, bytes) => {
                self.write(now, || Input::Bytes(id, bytes.to_vec()));
                self.speaker.handle_bytes(id, &bytes, now);
            }
            Arrival::Closed(id, why) => {
                if let Some(connection) = self.connections.remove(&id) {
                    connection.abandon();
                }
                self.write(now, || Input::Closed(id, why.clone()));
                self.speaker.handle_closed(id, &why, now);
            }
        }
    }

    fn let_in(&mut self, stream: TcpStream, remote: SocketAddr, now: Instant) {
        let Ok(local) = stream.local_addr() else {
            return;
        };
        let from = remote.ip().to_canonical();
        if self
            .signed
            .get(&from)
            .is_some_and(|(_, is_signed)| !is_signed)
        {
            debug!(%remote, "connection refused: it cannot be signed");
            return;
        }
        self.write(now, || Input::Incoming(local, remote));
        let Some(accepted) = self.speaker.handle_incoming(local, remote, now) else {
            debug!(%remote, "connection not wanted");
            return;
        };
        let id = accepted.connection;
        if let Err(error) = socket::prepare(&stream, accepted.distance) {
            let why = error.to_string();
            self.write(now, || Input::Closed(id, why.clone()));
            self.speaker.handle_closed(id, &why, now);
            return;
        }
        self.connections.insert(
            id,
            Connection::open(id, stream, &self.arrivals, &self.writing),
        );
    }

    /// Does what the speaker asks: transmits before closes, so that a last word is written.
    fn drain(&mut self) {
        while let Some(transmit) = self.speaker.poll_transmit() {
            if let Some(connection) = self.connections.get(&transmit.connection) {
                connection.send(transmit.bytes);
            }
        }
        while let Some(request) = self.speaker.poll_connection() {
            match request {
                ConnectionRequest::Connect {
                    connection,
                    address,
                    interface,
                    port,
                    local_address,
                    local_port,
                    distance,
                    password,
                    ..
                } => {
                    let remote = match address {
                        IpAddr::V4(v4) => SocketAddr::from((v4, port)),
                        IpAddr::V6(v6) => {
                            SocketAddrV6::new(v6, port, 0, interface.unwrap_or_default()).into()
                        }
                    };
                    let any = match address {
                        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
                        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
                    };
                    let local = SocketAddr::new(
                        local_address.unwrap_or(any),
                        local_port.unwrap_or_default(),
                    );
                    let arrivals = self.arrivals.clone();
                    let dial = tokio::spawn(async move {
                        let arrival =
                            match socket::dial(remote, local, distance, password.as_ref()).await {
                                Ok(stream) => Arrival::Connected(connection, stream),
                                Err(error) => Arrival::Failed(connection, error),
                            };
                        // A driver that is gone does not want to know.
                        let _ = arrivals.send(arrival).await;
                    });
                    self.dials.insert(connection, dial.abort_handle());
                }
                ConnectionRequest::Close { connection } => self.close(connection),
            }
        }
        while let Some(event) = self.speaker.poll_event() {
            self.tell(event);
        }
        if self.speaker.has_changed_routes() {
            self.publish_at.get_or_insert_with(|| now() + GATHER);
        }
    }

    fn close(&mut self, id: ConnectionId) {
        if let Some(dial) = self.dials.remove(&id) {
            dial.abort();
        }
        if let Some(connection) = self.connections.remove(&id) {
            self.closing.retain(|closing| !closing.is_finished());
            self.closing.push(connection.close());
        }
    }

    fn tell(&mut self, event: Event) {
        log(&event);
        if matches!(event, Event::EndOfRib { .. }) && self.speaker.has_changed_routes() {
            // Who hears that these were all routes must find them.
            self.publish(None);
        }
        self.publisher.event(event);
    }

    fn publish(&mut self, turn: Option<Turn>) {
        self.publish_at = None;
        let changes = self.speaker.take_changed_routes();
        self.publisher.routes(changes, turn);
    }
}

async fn accept(listener: Arc<TcpListener>, arrivals: Arrivals) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                if arrivals
                    .send(Arrival::Accepted(stream, remote))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(error) => {
                warn!(%error, "cannot accept BGP connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Pends where nothing is watched.
async fn next_change(watch: &mut Option<Watch>) -> Option<bfd::Event> {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn now() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "an edge: this is the speaker's clock"
    )]
    Instant::now()
}

fn log(event: &Event) {
    match event {
        Event::PeerUp {
            peer,
            remote_as,
            router_id,
        } => info!(%peer, remote_as, %router_id, "session established"),
        Event::PeerDown { peer, reason } => warn!(%peer, %reason, "session down"),
        Event::AttemptFailed { peer, reason } => debug!(%peer, %reason, "no session"),
        Event::UpdateFaults { peer, faults } => warn!(%peer, ?faults, "faulty update"),
        Event::EndOfRib { peer, family } => debug!(%peer, %family, "all routes received"),
        Event::RefreshAsked { peer, family } => debug!(%peer, %family, "asks for our routes again"),
        Event::RoutesOutlive {
            peer,
            family,
            stale_time,
            dropped,
        } => {
            info!(%peer, %family, ?stale_time, dropped, "long away: its routes are kept as the last choice");
        }
        Event::RefreshOver {
            peer,
            family,
            dropped,
        } => debug!(%peer, %family, dropped, "has told its routes again"),
        Event::RoutesKept {
            peer,
            family,
            restart_time,
        } => info!(%peer, %family, ?restart_time, "restarting: its routes are kept"),
        Event::RestartOver {
            peer,
            family,
            dropped,
        } => info!(%peer, %family, dropped, "restart over"),
        Event::RangeFull { peer, address } => {
            warn!(range = %peer, %address, "the range of peers is full");
        }
        Event::AnnouncementsRefused { peer, prefixes } => {
            warn!(%peer, ?prefixes, "announcements do not fit a message");
        }
    }
}
