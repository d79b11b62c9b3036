//! Typed handles to pinned tables, derived from the registry in `fairlead_common::tables`.
//!
//! [`Pinned`] opens a pin, checks that the map is the one the registry declares, and speaks rows. It
//! works with and without an agent: whoever may open the pin may read it.
//!
//! Not for deciding what rows should be (`plan`), nor for making maps ([`super::load`]).

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use aya::maps::{
    Array, HashMap, IterableMap, Map, MapData, MapError, MapType, PerCpuArray, PerCpuHashMap,
    PerCpuValues,
};
use bytemuck::Pod;
use fairlead_common::service::{Counter, SLOTS_PER_PAGE, Slot};
use fairlead_common::tables::{Declaration, Kind, Rings, Table};

use super::batch::{self, Place};
use super::mapped::{Access, Mapped};
use super::pins::Pins;

/// How many rows a walk reads with one system call.
const BATCH_ROWS: usize = 4096;
/// How many bytes of values a walk reads with one system call at most.
const BATCH_BYTES: usize = 1 << 20;

/// A value of the registry as aya takes it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Wire<T>(pub T);

// SAFETY: `T: bytemuck::Pod` promises what `aya::Pod` asks for (plain bytes, no padding), and the
// representation is transparent.
#[expect(
    unsafe_code,
    reason = "the one bridge between the registry's types and aya's"
)]
unsafe impl<T: Pod> aya::Pod for Wire<T> {}

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is pinned there.
    #[error("table {table} is not pinned at {}: start the agent (`fairlead run`), or give its pin path", path.display())]
    NotPinned {
        /// The table.
        table: &'static str,
        /// Where its pin should be.
        path: std::path::PathBuf,
    },
    /// The pinned map is not the one of this version.
    #[error(
        "table {table} has another layout than this version of Fairlead ({why}): use the version that wrote it, or restart the agent"
    )]
    Unfit {
        /// The table.
        table: &'static str,
        /// What differs.
        why: String,
    },
    /// The kernel refused.
    #[error("{doing} table {table}: {source}")]
    Map {
        /// What was tried.
        doing: &'static str,
        /// On which table.
        table: &'static str,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Its rows are in sockets.
    #[error(
        "the rows of table {table} are kept in sockets, each beside its own: the kernel lists them for nobody"
    )]
    InSockets {
        /// The table.
        table: &'static str,
    },
    /// This operation makes no sense for a map of this kind.
    #[error("a table of kind {} cannot be used by {operation}: {table}", kind.name())]
    Kind {
        /// The table.
        table: &'static str,
        /// Its kind.
        kind: Kind,
        /// What was asked.
        operation: &'static str,
    },
}

impl Error {
    fn map<E>(doing: &'static str, table: &'static str) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::Map {
            doing,
            table,
            source: source.into(),
        }
    }
}

/// A key and its value.
pub type Row<T> = (<T as Table>::Key, <T as Table>::Value);

/// A pinned table.
pub struct Pinned<T: Table> {
    handle: Handle<T>,
}

enum Handle<T: Table> {
    Array(Array<MapData, Wire<T::Value>>),
    PerCpu(PerCpuArray<MapData, Wire<T::Value>>),
    PerCpuHash(PerCpuHashMap<MapData, Wire<T::Key>, Wire<T::Value>>),
    Hash(HashMap<MapData, Wire<T::Key>, Wire<T::Value>>),
}

impl<T: Table> std::fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pinned").field("table", &T::NAME).finish()
    }
}

impl<T: Table> Pinned<T> {
    /// Opens the table's pin.
    ///
    /// # Errors
    /// [`Error::NotPinned`] and [`Error::Unfit`] when it is not there or not this version's;
    /// [`Error::InSockets`] when there is no table but what sockets keep.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        if T::KIND == Kind::SocketStorage {
            return Err(Error::InSockets { table: T::NAME });
        }
        let path = pins.map(T::NAME);
        if !path.exists() {
            return Err(Error::NotPinned {
                table: T::NAME,
                path,
            });
        }
        Self::from_pin(&path)
    }

    fn from_pin(path: &Path) -> Result<Self, Error> {
        let map = MapData::from_pin(path).map_err(Error::map("opening", T::NAME))?;
        if let Some(why) = difference(&Declaration::of::<T>(), &map)
            .map_err(Error::map("reading the layout of", T::NAME))?
        {
            return Err(Error::Unfit {
                table: T::NAME,
                why,
            });
        }
        Self::from_map(map).map_err(Error::map("opening", T::NAME))
    }

    fn from_map(map: MapData) -> Result<Self, MapError> {
        let handle = match T::KIND {
            Kind::Array | Kind::MappedArray | Kind::Global => {
                Handle::Array(Map::Array(map).try_into()?)
            }
            Kind::PerCpuArray => Handle::PerCpu(Map::PerCpuArray(map).try_into()?),
            Kind::PerCpuHash => Handle::PerCpuHash(Map::PerCpuHashMap(map).try_into()?),
            // A devmap, a trie and an array of programs are read and written by the same calls as a hash; their
            // rows are the registry's own, where aya has types for them.
            Kind::Hash | Kind::LruHash | Kind::DevMapHash | Kind::ProgramArray | Kind::LpmTrie => {
                Handle::Hash(Map::HashMap(map).try_into()?)
            }
            Kind::SocketStorage => {
                return Err(MapError::InvalidMapType {
                    map_type: map_type(T::KIND) as u32,
                });
            }
        };
        Ok(Self { handle })
    }

    /// A table of a loaded object, pinned or not.
    pub(super) fn of(map: &Map) -> Result<Self, Error> {
        let (Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuHashMap(data)) = map
        else {
            return Err(Self::wrong_kind("of"));
        };
        let descriptor = data.fd().as_fd().try_clone_to_owned();
        descriptor
            .map_err(MapError::from)
            .and_then(MapData::from_fd)
            .and_then(Self::from_map)
            .map_err(Error::map("opening", T::NAME))
    }

    fn map(&self) -> &MapData {
        match &self.handle {
            Handle::Array(map) => IterableMap::map(map),
            Handle::PerCpu(map) => IterableMap::map(map),
            Handle::PerCpuHash(map) => IterableMap::map(map),
            Handle::Hash(map) => IterableMap::map(map),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.map().fd().as_fd()
    }

    fn wrong_kind(operation: &'static str) -> Error {
        Error::Kind {
            table: T::NAME,
            kind: T::KIND,
            operation,
        }
    }

    /// Reads the row of a key; an array has a row for every index below its capacity.
    pub fn get(&self, key: &T::Key) -> Result<Option<T::Value>, Error> {
        let row = match &self.handle {
            Handle::Array(map) => map.get(&index(key), 0).map(|Wire(value)| value),
            Handle::Hash(map) => map.get(&Wire(*key), 0).map(|Wire(value)| value),
            Handle::PerCpu(_) | Handle::PerCpuHash(_) => return Err(Self::wrong_kind("get")),
        };
        match row {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound | MapError::OutOfBounds { .. }) => Ok(None),
            Err(error) => Err(Error::map("reading", T::NAME)(error)),
        }
    }

    /// Writes the row of a key.
    pub fn set(&mut self, key: &T::Key, value: &T::Value) -> Result<(), Error> {
        match &mut self.handle {
            Handle::Array(map) => map
                .set(index(key), Wire(*value), 0)
                .map_err(Error::map("writing", T::NAME)),
            Handle::Hash(map) => map
                .insert(Wire(*key), Wire(*value), 0)
                .map_err(Error::map("writing", T::NAME)),
            Handle::PerCpu(_) | Handle::PerCpuHash(_) => Err(Self::wrong_kind("set")),
        }
    }

    /// Writes the first of these rows with one system call. How many were written: fewer than there are at the first
    /// that could not be, and none when there is one only.
    pub fn set_together(&mut self, rows: impl Iterator<Item = (T::Key, T::Value)>) -> usize {
        if !matches!(self.handle, Handle::Array(_) | Handle::Hash(_)) {
            return 0;
        }
        let (mut keys, mut values, mut count) = (Vec::new(), Vec::new(), 0);
        for (key, value) in rows.take(BATCH_ROWS) {
            keys.extend_from_slice(bytemuck::bytes_of(&key));
            values.extend_from_slice(bytemuck::bytes_of(&value));
            count += 1;
        }
        if count < 2 {
            return 0;
        }
        batch::update(self.fd(), &keys, &values, count)
    }

    /// Removes the row of a key, or empties it in an array. `false` when there was none.
    pub fn remove(&mut self, key: &T::Key) -> Result<bool, Error> {
        let outcome = match &mut self.handle {
            Handle::Array(map) => {
                let zero: T::Value = bytemuck::Zeroable::zeroed();
                map.set(index(key), Wire(zero), 0)
            }
            Handle::Hash(map) => map.remove(&Wire(*key)),
            Handle::PerCpu(map) => {
                let zero: T::Value = bytemuck::Zeroable::zeroed();
                PerCpuValues::try_from(vec![Wire(zero); cpus::<T>()?])
                    .map_err(MapError::from)
                    .and_then(|zeros| map.set(index(key), zeros, 0))
            }
            Handle::PerCpuHash(map) => map.remove(&Wire(*key)),
        };
        match outcome {
            Ok(()) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound =>
            {
                Ok(false)
            }
            Err(error) => Err(Error::map("removing from", T::NAME)(error)),
        }
    }

    /// Walks all rows, those of an array in the order of their index. A hash that changes meanwhile may
    /// show a moving row twice or not at all.
    pub fn rows(&self) -> Walk<'_, T> {
        Walk {
            table: self,
            buffered: Vec::new().into_iter(),
            next: Some(Place::default()),
        }
    }

    /// Reads about `count` rows from a place on, and where to go on; for work in slices.
    pub fn some_rows(
        &self,
        place: Place,
        count: usize,
    ) -> Result<(Vec<Row<T>>, Option<Place>), Error> {
        match &self.handle {
            Handle::PerCpu(_) | Handle::PerCpuHash(_) => Err(Self::wrong_kind("rows")),
            // The kernel reads these one row at a time only; tries in batches, but not every kernel does.
            Handle::Hash(map)
                if matches!(
                    T::KIND,
                    Kind::DevMapHash | Kind::ProgramArray | Kind::LpmTrie
                ) =>
            {
                let rows = map
                    .iter()
                    .map(|row| {
                        row.map(|(Wire(key), Wire(value))| (key, value))
                            .map_err(Error::map("reading", T::NAME))
                    })
                    .collect::<Result<_, Error>>()?;
                Ok((rows, None))
            }
            Handle::Array(_) | Handle::Hash(_) => {
                let (key, value) = (size_of::<T::Key>(), size_of::<T::Value>());
                let rows = batch::lookup(self.fd(), place, key, value, count)
                    .map_err(Error::map("reading", T::NAME))?;
                let typed = rows
                    .keys
                    .chunks_exact(key)
                    .zip(rows.values.chunks_exact(value))
                    .map(|(key, value)| {
                        (
                            bytemuck::pod_read_unaligned(key),
                            bytemuck::pod_read_unaligned(value),
                        )
                    })
                    .collect();
                Ok((typed, rows.next))
            }
        }
    }
}

impl<T: Table<Key = u32>> Pinned<T> {
    /// Some rows as memory.
    pub(super) fn mapped(&self, rows: Range<u32>, access: Access) -> Result<Mapped<u64>, Error> {
        Mapped::new(self.fd(), &rows, size_of::<T::Value>(), access)
            .map_err(Error::map("mapping", T::NAME))
    }
}

impl<T: Table<Value: Counter>> Pinned<T> {
    /// Reads a counter, summed over CPUs; zero when it has no row.
    pub fn count(&self, key: &T::Key) -> Result<T::Value, Error> {
        let values = match &self.handle {
            Handle::PerCpu(map) => map.get(&index(key), 0),
            Handle::PerCpuHash(map) => map.get(&Wire(*key), 0),
            Handle::Array(_) | Handle::Hash(_) => return Err(Self::wrong_kind("count")),
        };
        match values {
            Ok(values) => Ok(sum(values.iter().map(|Wire(value)| *value))),
            Err(MapError::KeyNotFound) => Ok(T::Value::default()),
            Err(error) => Err(Error::map("reading", T::NAME)(error)),
        }
    }

    /// Reads the counters that are not zero, summed over CPUs, in the order of the map.
    pub fn counts(&self) -> Result<Vec<Row<T>>, Error> {
        if !matches!(self.handle, Handle::PerCpu(_) | Handle::PerCpuHash(_)) {
            return Err(Self::wrong_kind("counts"));
        }
        // Each CPU's value is rounded up to 8 bytes (kernel/bpf/syscall.c, bpf_map_value_size).
        let one = size_of::<T::Value>().next_multiple_of(8);
        let value = one * cpus::<T>()?;
        let key_bytes = size_of::<T::Key>();
        let mut counts = Vec::new();
        let mut next = Some(Place::default());
        while let Some(place) = next {
            let rows = batch::lookup(self.fd(), place, key_bytes, value, BATCH_ROWS)
                .map_err(Error::map("reading", T::NAME))?;
            let summed = rows
                .keys
                .chunks_exact(key_bytes)
                .zip(rows.values.chunks_exact(value))
                .map(|(key, value)| {
                    let per_cpu = value
                        .chunks_exact(one)
                        .map(|bytes| bytemuck::pod_read_unaligned(&bytes[..size_of::<T::Value>()]));
                    (bytemuck::pod_read_unaligned(key), sum(per_cpu))
                })
                .filter(|(_, count)| *count != T::Value::default());
            counts.extend(summed);
            next = rows.next;
        }
        Ok(counts)
    }
}

fn sum<C: Counter>(counts: impl Iterator<Item = C>) -> C {
    counts.fold(C::default(), C::plus)
}

/// How many CPUs a per-CPU table has values for.
fn cpus<T: Table>() -> Result<usize, Error> {
    aya::util::nr_cpus().map_err(|(_, error)| Error::map("counting the CPUs of", T::NAME)(error))
}

/// A walk through a table; ends at the first error.
pub struct Walk<'a, T: Table> {
    table: &'a Pinned<T>,
    buffered: std::vec::IntoIter<Row<T>>,
    next: Option<Place>,
}

impl<T: Table> Iterator for Walk<'_, T> {
    type Item = Result<Row<T>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.buffered.next() {
                return Some(Ok(row));
            }
            let place = self.next.take()?;
            let fitting = BATCH_BYTES / size_of::<T::Value>().max(1);
            match self.table.some_rows(place, fitting.clamp(1, BATCH_ROWS)) {
                Ok((rows, next)) => {
                    self.buffered = rows.into_iter();
                    self.next = next;
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// The slots of all rings, as memory.
#[derive(Debug)]
pub struct Slots {
    mapped: Mapped<Slot>,
}

impl Slots {
    /// Maps the pinned `RINGS`.
    pub fn open(pins: &Pins, access: Access) -> Result<Self, Error> {
        let table = Pinned::<Rings>::open(pins)?;
        let mapped = Mapped::new(
            table.fd(),
            &(0..Rings::CAPACITY),
            SLOTS_PER_PAGE as usize * size_of::<Slot>(),
            access,
        )
        .map_err(Error::map("mapping", Rings::NAME))?;
        Ok(Self { mapped })
    }

    /// How many slots there are over all rings.
    pub fn len(&self) -> u32 {
        self.mapped.len() as u32
    }

    /// Whether there is none; never.
    pub fn is_empty(&self) -> bool {
        self.mapped.is_empty()
    }

    /// Reads a slot by its place among all slots.
    pub fn get(&self, slot: u32) -> Option<Slot> {
        self.mapped.get(slot as usize)
    }

    /// Writes a slot by one store; `false` when there is no such slot.
    #[must_use]
    pub fn set(&mut self, slot: u32, value: Slot) -> bool {
        self.mapped.set(slot as usize, value)
    }

    /// Reads the slots of a ring that begins at `ring`; shorter when it would leave the table.
    pub fn ring(&self, ring: u32, slots: u32) -> Vec<Slot> {
        (ring..ring.saturating_add(slots))
            .map_while(|slot| self.get(slot))
            .collect()
    }
}

/// How a map differs from its declaration, or `None` when it fits.
pub(super) fn difference(
    declared: &Declaration,
    map: &MapData,
) -> Result<Option<String>, MapError> {
    let info = map.info()?;
    let kind = map_type(declared.kind);
    let facts = [
        ("key bytes", info.key_size(), declared.key_bytes),
        ("value bytes", info.value_size(), declared.value_bytes),
        ("capacity", info.max_entries(), declared.capacity),
        (
            "mappable",
            info.map_flags() & BPF_F_MMAPABLE,
            flags(declared.kind) & BPF_F_MMAPABLE,
        ),
    ];
    if info.map_type()? != kind {
        return Ok(Some(format!("it is no {}", declared.kind.name())));
    }
    Ok(facts.into_iter().find_map(|(what, is, should)| {
        (is != should).then(|| format!("{what} {is}, now {should}"))
    }))
}

/// The bytes of an array's first row.
pub(super) fn first_row(pins: &Pins, declared: &Declaration) -> Result<Vec<u8>, Error> {
    let map =
        MapData::from_pin(pins.map(declared.name)).map_err(Error::map("opening", declared.name))?;
    let (key, value) = (declared.key_bytes as usize, declared.value_bytes as usize);
    batch::lookup(map.fd().as_fd(), Place::default(), key, value, 1)
        .map(|rows| rows.values)
        .map_err(Error::map("reading", declared.name))
}

/// `BPF_F_MMAPABLE` (include/uapi/linux/bpf.h).
pub(super) const BPF_F_MMAPABLE: u32 = 1 << 10;
/// `BPF_F_NO_PREALLOC`.
const BPF_F_NO_PREALLOC: u32 = 1;

/// The creation flags of a kind of table.
pub(super) const fn flags(kind: Kind) -> u32 {
    match kind {
        Kind::MappedArray => BPF_F_MMAPABLE,
        Kind::SocketStorage | Kind::LpmTrie => BPF_F_NO_PREALLOC,
        Kind::Array
        | Kind::Global
        | Kind::PerCpuArray
        | Kind::Hash
        | Kind::PerCpuHash
        | Kind::LruHash
        | Kind::DevMapHash
        | Kind::ProgramArray => 0,
    }
}

/// The kernel's type for a kind of table.
pub(super) const fn map_type(kind: Kind) -> MapType {
    match kind {
        Kind::Array | Kind::MappedArray | Kind::Global => MapType::Array,
        Kind::PerCpuArray => MapType::PerCpuArray,
        Kind::Hash => MapType::Hash,
        Kind::PerCpuHash => MapType::PerCpuHash,
        Kind::LruHash => MapType::LruHash,
        Kind::DevMapHash => MapType::DevMapHash,
        Kind::SocketStorage => MapType::SkStorage,
        Kind::ProgramArray => MapType::ProgramArray,
        Kind::LpmTrie => MapType::LpmTrie,
    }
}

/// Reads the `u32` that arrays and devmaps are keyed by.
pub(super) fn index<K: Pod>(key: &K) -> u32 {
    bytemuck::pod_read_unaligned(bytemuck::bytes_of(key))
}
