//! The finite state machine of one connection (RFC 4271 §8.2.2).
//!
//! ```text
//!          start          TCP up             OPEN ok            KEEPALIVE
//!   Idle --------> Connect ------> OpenSent --------> OpenConfirm --------> Established
//!    ^  \            ^  | TCP fails    | TCP fails         |                     |
//!    |   \ passive   |  v              v                   |                     |
//!    |    `-------> Active <-----------'                   |                     |
//!    |               |  retry timer: dial again            |                     |
//!    `---------------+-------------------------------------+---------------------'
//!                      stop, error, NOTIFICATION, timer: rest, then start again
//! ```
//!
//! [`step`] is total: each state answers each event, without failing and without data. What the
//! events mean in bytes and what the actions do to sockets and timers is `session`'s business.
//!
//! Events of §8.1 that do not occur here: 12 and 20 (we do not delay OPENs), 13 (the end of the
//! idle hold is the damped start, 6 or 7), 14 and 15 (the embedder accepts connections). Where we
//! differ from §8.2.2: a failed dial leads to Active with the retry timer running, as in every
//! deployed speaker; a passive session has no retry timer; a NOTIFICATION is never answered.

use serde::{Deserialize, Serialize};

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Resting; connections are refused.
    Idle,
    /// Dialling.
    Connect,
    /// Waiting to be dialled or to dial again.
    Active,
    /// Our OPEN is out.
    OpenSent,
    /// Both OPENs agree.
    OpenConfirm,
    /// Routes flow.
    Established,
}

impl State {
    /// Every state, in order of progress.
    pub const ALL: [Self; 6] = [
        Self::Idle,
        Self::Connect,
        Self::Active,
        Self::OpenSent,
        Self::OpenConfirm,
        Self::Established,
    ];
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Idle => "Idle",
            Self::Connect => "Connect",
            Self::Active => "Active",
            Self::OpenSent => "OpenSent",
            Self::OpenConfirm => "OpenConfirm",
            Self::Established => "Established",
        })
    }
}

/// What can happen to a connection; the numbers are those of RFC 4271 §8.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// 1: a person wants the session.
    ManualStart,
    /// 2: a person does not want it any more.
    ManualStop,
    /// 3: the speaker wants the session.
    AutomaticStart,
    /// 4: a person wants it, the peer shall dial.
    ManualStartPassive,
    /// 5: the speaker wants it, the peer shall dial.
    AutomaticStartPassive,
    /// 6: the rest after a failure is over.
    DampedStart,
    /// 7: the same, the peer shall dial.
    DampedStartPassive,
    /// 8: the speaker does not want it any more.
    AutomaticStop,
    /// 9: time to dial again.
    ConnectRetryExpires,
    /// 10: nothing was heard for the hold time.
    HoldExpires,
    /// 11: time to say that we live.
    KeepaliveExpires,
    /// 16: our dial was answered.
    TcpAcked,
    /// 17: we were dialled.
    TcpConfirmed,
    /// 18: the connection failed or was closed.
    TcpFails,
    /// 19: an acceptable OPEN.
    Open,
    /// 21: a header that is none.
    HeaderError,
    /// 22: an OPEN that we refuse.
    OpenError,
    /// 23: the other connection of a collision stays.
    CollisionDump,
    /// 24: a NOTIFICATION about the version.
    VersionNotification,
    /// 25: any other NOTIFICATION.
    Notification,
    /// 26: a KEEPALIVE.
    Keepalive,
    /// 27: a readable UPDATE.
    Update,
    /// 28: an UPDATE that ends the session.
    UpdateError,
    /// RFC 2918: the peer wants our routes again.
    RouteRefresh,
    /// RFC 9687: the peer took nothing from us for the send hold time.
    SendHoldExpires,
}

impl Event {
    /// Every event, in the order of the RFC.
    pub const ALL: [Self; 25] = [
        Self::ManualStart,
        Self::ManualStop,
        Self::AutomaticStart,
        Self::ManualStartPassive,
        Self::AutomaticStartPassive,
        Self::DampedStart,
        Self::DampedStartPassive,
        Self::AutomaticStop,
        Self::ConnectRetryExpires,
        Self::HoldExpires,
        Self::KeepaliveExpires,
        Self::TcpAcked,
        Self::TcpConfirmed,
        Self::TcpFails,
        Self::Open,
        Self::HeaderError,
        Self::OpenError,
        Self::CollisionDump,
        Self::VersionNotification,
        Self::Notification,
        Self::Keepalive,
        Self::Update,
        Self::UpdateError,
        Self::RouteRefresh,
        Self::SendHoldExpires,
    ];
}

/// What is to be done about an event, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Open a TCP connection.
    Dial,
    /// Close the TCP connection, or give up dialling.
    Drop,
    /// Send our OPEN.
    SendOpen,
    /// Send a KEEPALIVE.
    SendKeepalive,
    /// Send the NOTIFICATION that came with the event.
    Notify,
    /// Send Hold Timer Expired.
    NotifyHoldExpired,
    /// Send a Finite State Machine Error (RFC 6608 names the state).
    NotifyFsmError,
    /// Dial again after the retry time.
    StartConnectRetry,
    /// Do not.
    StopConnectRetry,
    /// Wait four minutes at most for the OPEN.
    StartLargeHold,
    /// Wait the negotiated hold time at most for the next sign of life.
    StartHold,
    /// Speak again after the keepalive time.
    StartKeepalive,
    /// Begin to exchange routes.
    Establish,
    /// Use the routes of the UPDATE.
    Deliver,
    /// Send our routes again.
    Refresh,
    /// Stop all timers of this connection; it was stopped by intent.
    Rest,
    /// Stop all timers of this connection; it failed, so the next start is damped.
    Fail,
}

/// The answer of a state to an event: the state after it and what to do.
pub const fn step(state: State, event: Event) -> (State, &'static [Action]) {
    match state {
        State::Idle => idle(event),
        State::Connect => connect(event),
        State::Active => active(event),
        State::OpenSent => open_sent(event),
        State::OpenConfirm => open_confirm(event),
        State::Established => established(event),
    }
}

const NOTHING: &[Action] = &[];
const STOP: &[Action] = &[Action::Drop, Action::Rest];
const FAIL: &[Action] = &[Action::Drop, Action::Fail];
const NOTIFY_AND_STOP: &[Action] = &[Action::Notify, Action::Drop, Action::Rest];
const NOTIFY_AND_FAIL: &[Action] = &[Action::Notify, Action::Drop, Action::Fail];
const HOLD_EXPIRED: &[Action] = &[Action::NotifyHoldExpired, Action::Drop, Action::Fail];
const FSM_ERROR: &[Action] = &[Action::NotifyFsmError, Action::Drop, Action::Fail];
const GREET: &[Action] = &[
    Action::StopConnectRetry,
    Action::SendOpen,
    Action::StartLargeHold,
];

const fn idle(event: Event) -> (State, &'static [Action]) {
    match event {
        Event::ManualStart | Event::AutomaticStart | Event::DampedStart => {
            (State::Connect, &[Action::StartConnectRetry, Action::Dial])
        }
        Event::ManualStartPassive | Event::AutomaticStartPassive | Event::DampedStartPassive => {
            (State::Active, NOTHING)
        }
        Event::ManualStop
        | Event::AutomaticStop
        | Event::ConnectRetryExpires
        | Event::HoldExpires
        | Event::KeepaliveExpires
        | Event::TcpAcked
        | Event::TcpConfirmed
        | Event::TcpFails
        | Event::Open
        | Event::HeaderError
        | Event::OpenError
        | Event::CollisionDump
        | Event::VersionNotification
        | Event::Notification
        | Event::Keepalive
        | Event::Update
        | Event::UpdateError
        | Event::RouteRefresh
        | Event::SendHoldExpires => (State::Idle, NOTHING),
    }
}

const fn connect(event: Event) -> (State, &'static [Action]) {
    match event {
        Event::ManualStart
        | Event::AutomaticStart
        | Event::ManualStartPassive
        | Event::AutomaticStartPassive
        | Event::DampedStart
        | Event::DampedStartPassive => (State::Connect, NOTHING),
        Event::ManualStop | Event::AutomaticStop | Event::CollisionDump => (State::Idle, STOP),
        Event::ConnectRetryExpires => (
            State::Connect,
            &[Action::Drop, Action::StartConnectRetry, Action::Dial],
        ),
        Event::TcpAcked | Event::TcpConfirmed => (State::OpenSent, GREET),
        Event::TcpFails => (State::Active, &[Action::StartConnectRetry]),
        Event::HoldExpires
        | Event::KeepaliveExpires
        | Event::Open
        | Event::HeaderError
        | Event::OpenError
        | Event::VersionNotification
        | Event::Notification
        | Event::Keepalive
        | Event::Update
        | Event::UpdateError
        | Event::RouteRefresh
        | Event::SendHoldExpires => (State::Idle, FAIL),
    }
}

const fn active(event: Event) -> (State, &'static [Action]) {
    match event {
        Event::ManualStart
        | Event::AutomaticStart
        | Event::ManualStartPassive
        | Event::AutomaticStartPassive
        | Event::DampedStart
        | Event::DampedStartPassive => (State::Active, NOTHING),
        Event::ManualStop | Event::AutomaticStop | Event::CollisionDump => (State::Idle, STOP),
        Event::ConnectRetryExpires => (State::Connect, &[Action::StartConnectRetry, Action::Dial]),
        Event::TcpAcked | Event::TcpConfirmed => (State::OpenSent, GREET),
        Event::TcpFails => (State::Active, &[Action::StartConnectRetry]),
        Event::HoldExpires
        | Event::KeepaliveExpires
        | Event::Open
        | Event::HeaderError
        | Event::OpenError
        | Event::VersionNotification
        | Event::Notification
        | Event::Keepalive
        | Event::Update
        | Event::UpdateError
        | Event::RouteRefresh
        | Event::SendHoldExpires => (State::Idle, FAIL),
    }
}

const fn open_sent(event: Event) -> (State, &'static [Action]) {
    match event {
        Event::ManualStart
        | Event::AutomaticStart
        | Event::ManualStartPassive
        | Event::AutomaticStartPassive
        | Event::DampedStart
        | Event::DampedStartPassive
        | Event::TcpAcked
        | Event::TcpConfirmed => (State::OpenSent, NOTHING),
        Event::ManualStop | Event::AutomaticStop | Event::CollisionDump => {
            (State::Idle, NOTIFY_AND_STOP)
        }
        Event::HoldExpires => (State::Idle, HOLD_EXPIRED),
        Event::TcpFails => (State::Active, &[Action::Drop, Action::StartConnectRetry]),
        Event::Open => (
            State::OpenConfirm,
            &[
                Action::SendKeepalive,
                Action::StartKeepalive,
                Action::StartHold,
            ],
        ),
        Event::HeaderError | Event::OpenError => (State::Idle, NOTIFY_AND_FAIL),
        Event::VersionNotification | Event::Notification | Event::SendHoldExpires => {
            (State::Idle, FAIL)
        }
        Event::ConnectRetryExpires
        | Event::KeepaliveExpires
        | Event::Keepalive
        | Event::Update
        | Event::UpdateError
        | Event::RouteRefresh => (State::Idle, FSM_ERROR),
    }
}

const fn open_confirm(event: Event) -> (State, &'static [Action]) {
    match event {
        Event::ManualStart
        | Event::AutomaticStart
        | Event::ManualStartPassive
        | Event::AutomaticStartPassive
        | Event::DampedStart
        | Event::DampedStartPassive
        | Event::TcpAcked
        | Event::TcpConfirmed => (State::OpenConfirm, NOTHING),
        Event::ManualStop | Event::AutomaticStop | Event::CollisionDump => {
            (State::Idle, NOTIFY_AND_STOP)
        }
        Event::HoldExpires => (State::Idle, HOLD_EXPIRED),
        Event::KeepaliveExpires => (
            State::OpenConfirm,
            &[Action::SendKeepalive, Action::StartKeepalive],
        ),
        Event::HeaderError | Event::OpenError => (State::Idle, NOTIFY_AND_FAIL),
        Event::TcpFails
        | Event::VersionNotification
        | Event::Notification
        | Event::SendHoldExpires => (State::Idle, FAIL),
        Event::Keepalive => (State::Established, &[Action::StartHold, Action::Establish]),
        Event::ConnectRetryExpires
        | Event::Open
        | Event::Update
        | Event::UpdateError
        | Event::RouteRefresh => (State::Idle, FSM_ERROR),
    }
}

const fn established(event: Event) -> (State, &'static [Action]) {
    match event {
        Event::ManualStart
        | Event::AutomaticStart
        | Event::ManualStartPassive
        | Event::AutomaticStartPassive
        | Event::DampedStart
        | Event::DampedStartPassive
        | Event::TcpAcked
        | Event::TcpConfirmed => (State::Established, NOTHING),
        Event::ManualStop | Event::AutomaticStop | Event::CollisionDump => {
            (State::Idle, NOTIFY_AND_STOP)
        }
        Event::HoldExpires => (State::Idle, HOLD_EXPIRED),
        Event::KeepaliveExpires => (
            State::Established,
            &[Action::SendKeepalive, Action::StartKeepalive],
        ),
        Event::HeaderError | Event::OpenError | Event::UpdateError => {
            (State::Idle, NOTIFY_AND_FAIL)
        }
        Event::TcpFails
        | Event::VersionNotification
        | Event::Notification
        | Event::SendHoldExpires => (State::Idle, FAIL),
        Event::Keepalive => (State::Established, &[Action::StartHold]),
        Event::Update => (State::Established, &[Action::StartHold, Action::Deliver]),
        Event::RouteRefresh => (State::Established, &[Action::Refresh]),
        Event::ConnectRetryExpires | Event::Open => (State::Idle, FSM_ERROR),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    fn table() -> String {
        let mut table = String::new();
        for state in State::ALL {
            for event in Event::ALL {
                let (next, actions) = step(state, event);
                let actions: Vec<_> = actions.iter().map(|a| format!("{a:?}")).collect();
                let event = format!("{event:?}");
                writeln!(
                    table,
                    "{state:<11} {event:<21} -> {next:<11} {}",
                    actions.join(" ")
                )
                .unwrap();
            }
        }
        table
    }

    #[test]
    fn the_whole_table_is_as_written_down() {
        let table = table();
        if std::env::var_os("FAIRLEAD_WRITE_SNAPSHOTS").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/fsm/table.txt");
            std::fs::write(path, &table).unwrap();
        }
        println!("{table}");
        assert!(
            table == include_str!("fsm/table.txt").trim_start(),
            "the table differs from fsm/table.txt; look at the difference, then run with \
             FAIRLEAD_WRITE_SNAPSHOTS=1"
        );
    }

    #[test]
    fn each_way_to_idle_drops_the_connection_and_stops_its_timers() {
        for state in State::ALL.into_iter().skip(1) {
            for event in Event::ALL {
                let (next, actions) = step(state, event);
                if next == State::Idle {
                    assert!(actions.contains(&Action::Drop), "{state} {event:?}");
                    let last = actions.last().unwrap();
                    assert!(
                        matches!(last, Action::Rest | Action::Fail),
                        "{state} {event:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_notification_is_never_answered() {
        for state in State::ALL {
            for event in [Event::Notification, Event::VersionNotification] {
                let (_, actions) = step(state, event);
                assert!(!actions.iter().any(|action| matches!(
                    action,
                    Action::Notify | Action::NotifyFsmError | Action::NotifyHoldExpired
                )));
            }
        }
    }

    #[test]
    fn routes_are_only_used_when_established() {
        for state in State::ALL {
            let (_, actions) = step(state, Event::Update);
            assert_eq!(
                actions.contains(&Action::Deliver),
                state == State::Established
            );
        }
    }
}
