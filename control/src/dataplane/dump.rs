//! Tables as text: what `dpctl maps list|dump|get` shows, derived from the registry.
//!
//! Keys and values become JSON with lower camelCase names; the raw bytes come along as hex. A key is
//! given as JSON or as `field=value` words, with the same names.
//!
//! ```text
//!   dpctl maps get SERVICES addr=192.0.2.1 port=80 proto=tcp
//!   dpctl maps get BACKENDS 3
//! ```
//!
//! Of an array only the rows that are not zero are shown; of `RINGS` the slots, each under its place
//! among all slots.
//!
//! Not for JSON schemas of services and routes: the agent's API has its own types.

use std::fmt::Write as _;

use bytemuck::Pod;
use fairlead_common::reason::Reason;
use fairlead_common::service::{SLOTS_PER_PAGE, Slot};
use fairlead_common::tables::{self, Declaration, Kind, Table};
use serde::Serialize;
use serde_json::Value;

use self::parse::parse_key;
use self::render::ToJson;
use super::kept::Kept;
use super::mapped::Access;
use super::pins::Pins;
use super::table::{self, Pinned, Slots};

mod parse;
mod render;

/// Why a table cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no table of that name.
    #[error("no table is called {name}: there are {}", tables::ALL.iter().map(|table| table.name).collect::<Vec<_>>().join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The text is not a key of the table.
    #[error("{text:?} is no key of {table}: {why}")]
    Key {
        /// The table.
        table: &'static str,
        /// The text.
        text: String,
        /// What is wrong, and how a key is written.
        why: String,
    },
    /// The table could not be read.
    #[error(transparent)]
    Table(#[from] table::Error),
}

/// A table, and how full it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// The kind of BPF map.
    pub kind: &'static str,
    /// The version of its layout.
    pub version: u32,
    /// Bytes of a key.
    pub key_bytes: u32,
    /// Bytes of a value, of one CPU in a per-CPU table.
    pub value_bytes: u32,
    /// How many rows it can hold; slots in the table of rings.
    pub capacity: u32,
    /// How many are in use: in a hash those that are there, in an array those that are not zero.
    /// Absent: it is not pinned, or cannot be read.
    pub entries: Option<u32>,
}

/// A row, for people and for machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The key.
    pub key: Value,
    /// The value, summed over CPUs in a per-CPU table.
    pub value: Value,
    /// The key's bytes in hex.
    pub raw_key: String,
    /// The value's bytes in hex.
    pub raw_value: String,
}

/// What one table type can show.
trait Shown: Table {
    fn entries(pins: &Pins) -> Result<u32, table::Error>;
    fn dump(pins: &Pins) -> Result<Vec<Row>, table::Error>;
    fn get(pins: &Pins, key: &Self::Key) -> Result<Option<Row>, table::Error>;
}

/// Calls `$go::<TableType>()` for the table of that name.
macro_rules! by_name {
    ($name:expr, |$table:ident| $body:expr) => {{
        macro_rules! visit {
            ($declared:ident) => {
                if $name.eq_ignore_ascii_case(<tables::$declared as Table>::NAME) {
                    type $table = tables::$declared;
                    return $body;
                }
            };
        }
        fairlead_common::for_each_table!(visit);
        Err(Error::Unknown {
            name: $name.to_owned(),
        })
    }};
}

/// Lists every table of the registry, pinned or not.
pub fn list(pins: &Pins) -> Vec<Usage> {
    tables::ALL
        .iter()
        .map(|declared| usage(pins, declared))
        .collect()
}

fn usage(pins: &Pins, declared: &Declaration) -> Usage {
    let slots = if declared.name == tables::Rings::NAME {
        SLOTS_PER_PAGE
    } else {
        1
    };
    Usage {
        name: declared.name,
        about: declared.about,
        kind: declared.kind.name(),
        version: declared.version,
        key_bytes: declared.key_bytes,
        value_bytes: declared.value_bytes,
        capacity: declared.capacity * slots,
        entries: entries(pins, declared.name).ok(),
    }
}

/// Counts the rows of a table that are in use.
pub fn entries(pins: &Pins, name: &str) -> Result<u32, Error> {
    by_name!(name, |T| Ok(<T as Shown>::entries(pins)?))
}

/// Reads the rows of a table that are in use, in the order of the map.
pub fn dump(pins: &Pins, name: &str) -> Result<Vec<Row>, Error> {
    by_name!(name, |T| Ok(<T as Shown>::dump(pins)?))
}

/// Reads one row, by its key as text.
pub fn get(pins: &Pins, name: &str, key: &str) -> Result<Option<Row>, Error> {
    by_name!(name, |T| {
        let key = parse_key::<<T as Table>::Key>(key).map_err(|why| Error::Key {
            table: T::NAME,
            text: key.to_owned(),
            why,
        })?;
        Ok(<T as Shown>::get(pins, &key)?)
    })
}

fn row<K: Pod + ToJson, V: Pod + ToJson>(table: &str, key: &K, value: &V) -> Row {
    let mut shown = value.to_json();
    // Two tables are indexed by places in a list that people know by name.
    let index: Option<u32> = bytemuck::try_pod_read_unaligned(bytemuck::bytes_of(key)).ok();
    if let (Value::Object(fields), Some(name)) = (&mut shown, index.and_then(|i| name_of(table, i)))
    {
        fields.insert("name".to_owned(), name.into());
    }
    Row {
        key: key.to_json(),
        value: shown,
        raw_key: hex(bytemuck::bytes_of(key)),
        raw_value: hex(bytemuck::bytes_of(value)),
    }
}

fn name_of(table: &str, index: u32) -> Option<&'static str> {
    let index = index as usize;
    match table {
        "REASONS" => Reason::ALL.get(index).map(|reason| reason.name()),
        _ => None,
    }
}

fn is_zero<V: Pod>(value: &V) -> bool {
    bytemuck::bytes_of(value).iter().all(|&byte| byte == 0)
}

/// Rows that are read one by one: every kind but the counters and the rings.
macro_rules! shown_by_rows {
    ($($table:ident)+) => {$(
        impl Shown for tables::$table {
            fn entries(pins: &Pins) -> Result<u32, table::Error> {
                let mut entries = 0;
                for row in used::<Self>(&Pinned::open(pins)?) {
                    row?;
                    entries += 1;
                }
                Ok(entries)
            }

            fn dump(pins: &Pins) -> Result<Vec<Row>, table::Error> {
                used::<Self>(&Pinned::open(pins)?)
                    .map(|one| one.map(|(key, value)| row(Self::NAME, &key, &value)))
                    .collect()
            }

            fn get(pins: &Pins, key: &Self::Key) -> Result<Option<Row>, table::Error> {
                let value = Pinned::<Self>::open(pins)?.get(key)?;
                Ok(value.map(|value| row(Self::NAME, key, &value)))
            }
        }
    )+};
}

shown_by_rows!(
    NodeTable Devices TxPorts Services ServiceCells ServiceCopies Backends Flows SnatRev SnatFwd DecapAddrs Layout NextHops Sockets
    Datagrams Affinity Detours PodDetours Addresses SieveTable SourceRanges NatWays WayEpoch NatRecent Serving Arrivals
    Answers Fragments
);

fn used<T: Table>(
    table: &Pinned<T>,
) -> impl Iterator<Item = Result<table::Row<T>, table::Error>> + '_ {
    let is_array = matches!(T::KIND, Kind::Array | Kind::MappedArray | Kind::Global);
    table.rows().filter(move |row| {
        row.as_ref()
            .map_or(true, |(_, value)| !is_array || !is_zero(value))
    })
}

macro_rules! shown_by_counts {
    ($($table:ident)+) => {$(
        impl Shown for tables::$table {
            fn entries(pins: &Pins) -> Result<u32, table::Error> {
                Ok(Pinned::<Self>::open(pins)?.counts()?.len() as u32)
            }

            fn dump(pins: &Pins) -> Result<Vec<Row>, table::Error> {
                let counts = Pinned::<Self>::open(pins)?.counts()?;
                Ok(counts.iter().map(|(key, count)| row(Self::NAME, key, count)).collect())
            }

            fn get(pins: &Pins, key: &Self::Key) -> Result<Option<Row>, table::Error> {
                let is_array = Self::KIND == Kind::PerCpuArray;
                if is_array && table::index(key) >= Self::CAPACITY {
                    return Ok(None);
                }
                let count = Pinned::<Self>::open(pins)?.count(key)?;
                let is_there = is_array || !is_zero(&count);
                Ok(is_there.then(|| row(Self::NAME, key, &count)))
            }
        }
    )+};
}

shown_by_counts!(ServiceStats BackendStats Reasons ServiceDrops);

impl Shown for tables::Rings {
    fn entries(pins: &Pins) -> Result<u32, table::Error> {
        let slots = Slots::open(pins, Access::Read)?;
        Ok(used_slots(&slots).count() as u32)
    }

    fn dump(pins: &Pins) -> Result<Vec<Row>, table::Error> {
        let slots = Slots::open(pins, Access::Read)?;
        Ok(used_slots(&slots)
            .map(|(place, slot)| row(Self::NAME, &place, &slot))
            .collect())
    }

    fn get(pins: &Pins, key: &u32) -> Result<Option<Row>, table::Error> {
        let slot = Slots::open(pins, Access::Read)?.get(*key);
        Ok(slot.map(|slot| row(Self::NAME, key, &slot)))
    }
}

impl Shown for tables::NatFlows {
    fn entries(pins: &Pins) -> Result<u32, table::Error> {
        let mut entries = 0;
        Kept::open(pins)?.each(|_, _| entries += 1)?;
        Ok(entries)
    }

    fn dump(pins: &Pins) -> Result<Vec<Row>, table::Error> {
        let mut rows = Vec::new();
        Kept::open(pins)?.each(|at, flow| rows.push(row(Self::NAME, &at, &flow)))?;
        Ok(rows)
    }

    fn get(pins: &Pins, key: &u32) -> Result<Option<Row>, table::Error> {
        let flow = Kept::open(pins)?.flow(*key)?;
        Ok(flow.map(|flow| row(Self::NAME, key, &flow)))
    }
}

fn used_slots(slots: &Slots) -> impl Iterator<Item = (u32, Slot)> + '_ {
    (0..slots.len()).filter_map(|place| {
        let slot = slots.get(place)?;
        (!is_zero(&slot)).then_some((place, slot))
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use fairlead_common::service::Count;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_counter_says_the_name_of_its_reason() {
        let shown = row(
            "REASONS",
            &(Reason::Routed as u32),
            &Count {
                packets: 2,
                bytes: 100,
            },
        );

        assert_eq!(
            shown.value,
            json!({ "packets": 2, "bytes": 100, "name": "routed" })
        );
        assert_eq!(shown.raw_key, hex(&(Reason::Routed as u32).to_ne_bytes()));
    }
}
