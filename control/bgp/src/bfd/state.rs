//! The state machine of a session (RFC 5880 §6.2 and §6.8.6) as a table.
//!
//! ```text
//!                        peer: Down                  peer: Init, Up
//!          enabled   .--------------> Init ----------------------------.
//!   AdminDown ----> Down               |                               v
//!       ^            ^ |               | expired, peer: AdminDown      Up
//!       | disabled   | `---------------+-- peer: Init ---------------> |
//!       `-- any      `-----------------'                               |
//!                    ^           expired, peer: Down or AdminDown      |
//!                    `-------------------------------------------------'
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Diagnostic;

/// Where one end of a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It takes no part.
    AdminDown,
    /// It does not hear the other end.
    Down,
    /// It hears the other end, and does not know that it is heard.
    Init,
    /// Both hear each other.
    Up,
}

impl State {
    /// Every state, as they are numbered on the wire.
    pub const ALL: [Self; 4] = [Self::AdminDown, Self::Down, Self::Init, Self::Up];

    pub(super) const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::AdminDown,
            1 => Self::Down,
            2 => Self::Init,
            _ => Self::Up,
        }
    }

    pub(super) const fn bits(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AdminDown => "admin-down",
            Self::Down => "down",
            Self::Init => "init",
            Self::Up => "up",
        })
    }
}

/// What can happen to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The other end said where it stands.
    Heard(State),
    /// Nothing was heard for the detection time.
    Expired,
    /// We take no part any more.
    Disabled,
}

impl Event {
    #[cfg(test)]
    const ALL: [Self; 6] = [
        Self::Heard(State::AdminDown),
        Self::Heard(State::Down),
        Self::Heard(State::Init),
        Self::Heard(State::Up),
        Self::Expired,
        Self::Disabled,
    ];
}

/// Where a session goes, and the diagnostic of the change; `None`: it stays.
pub(super) const fn step(state: State, event: Event) -> Option<(State, Diagnostic)> {
    match (state, event) {
        (State::AdminDown, _) => None,
        (_, Event::Disabled) => Some((State::AdminDown, Diagnostic::ADMINISTRATIVELY_DOWN)),
        (State::Down, Event::Heard(State::Down)) => Some((State::Init, Diagnostic::NONE)),
        (State::Down, Event::Heard(State::Init)) => Some((State::Up, Diagnostic::NONE)),
        (State::Down, Event::Heard(State::AdminDown | State::Up) | Event::Expired) => None,
        (State::Init, Event::Heard(State::Init | State::Up)) => Some((State::Up, Diagnostic::NONE)),
        (State::Init, Event::Heard(State::Down)) => None,
        (State::Up, Event::Heard(State::Init | State::Up)) => None,
        (State::Init | State::Up, Event::Heard(State::AdminDown))
        | (State::Up, Event::Heard(State::Down)) => Some((State::Down, Diagnostic::NEIGHBOR_DOWN)),
        (State::Init | State::Up, Event::Expired) => Some((State::Down, Diagnostic::TIME_EXPIRED)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table_is_as_the_rfc_has_it() {
        let mut table = String::new();
        for state in State::ALL {
            for event in Event::ALL {
                let event_name = match event {
                    Event::Heard(theirs) => format!("heard {theirs}"),
                    Event::Expired => "expired".to_owned(),
                    Event::Disabled => "disabled".to_owned(),
                };
                let outcome = match step(state, event) {
                    None => "stays".to_owned(),
                    Some((next, Diagnostic(0))) => next.to_string(),
                    Some((next, why)) => format!("{next:<10} {why}"),
                };
                table += &format!("{state:<10} {event_name:<16} {outcome}\n");
            }
        }
        println!("{table}");
        let expected = "\
admin-down heard admin-down stays
admin-down heard down       stays
admin-down heard init       stays
admin-down heard up         stays
admin-down expired          stays
admin-down disabled         stays
down       heard admin-down stays
down       heard down       init
down       heard init       up
down       heard up         stays
down       expired          stays
down       disabled         admin-down administratively down
init       heard admin-down down       neighbor signaled session down
init       heard down       stays
init       heard init       up
init       heard up         up
init       expired          down       control detection time expired
init       disabled         admin-down administratively down
up         heard admin-down down       neighbor signaled session down
up         heard down       down       neighbor signaled session down
up         heard init       stays
up         heard up         stays
up         expired          down       control detection time expired
up         disabled         admin-down administratively down
";
        assert_eq!(table, expected);
    }
}
