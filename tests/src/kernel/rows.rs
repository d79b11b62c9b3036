//! Rows of the loaded object's tables, as values of `fairlead-common`.

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, PerCpuValues};
use bytemuck::Pod;
use fairlead_common::addr::{Port, Proto};
use fairlead_common::reason::Reason;
use fairlead_common::service::{Count, Counter, Service, ServiceCopy, ServiceKey};
use fairlead_common::tables::{
    Arrivals, BackendStats, Flows, Kind, NatRecent, Reasons, Rings, ServiceCells, ServiceCopies,
    ServiceStats, Services, SnatFwd, SnatRev, Table,
};

use fairlead_control::dataplane::table::Wire;

use super::{Node, SNAT_ROWS, addr_of};

/// Bytes of a source range behind its length.
const SOURCE_BYTES: usize = 20;

/// Tables that a test's node has fewer rows of.
pub(super) const FEW_ROWS: &[(&str, u32)] = &[
    (Services::NAME, 64),
    (ServiceCopies::NAME, COPIES),
    (Rings::NAME, 256),
    (Flows::NAME, 1024),
    (SnatRev::NAME, SNAT_ROWS),
    (NatRecent::NAME, 1024),
    (Arrivals::NAME, 64),
    (SnatFwd::NAME, 1024),
    (ServiceStats::NAME, 512),
    (BackendStats::NAME, 512),
];
/// Rows of `SERVICE_COPIES` on a test's node.
const COPIES: u32 = 128;

impl Node {
    /// Reads a row.
    pub fn get<T: Table>(&mut self, key: &T::Key) -> Option<T::Value> {
        let map = self.map::<T>();
        match T::KIND {
            Kind::Array | Kind::MappedArray | Kind::Global => {
                let map: Array<_, Wire<T::Value>> = map.try_into().expect(T::NAME);
                map.get(&index(key), 0).ok().map(|wire| wire.0)
            }
            Kind::Hash | Kind::LruHash => {
                let map: HashMap<_, Wire<T::Key>, Wire<T::Value>> = map.try_into().expect(T::NAME);
                map.get(&Wire(*key), 0).ok().map(|wire| wire.0)
            }
            Kind::PerCpuArray
            | Kind::PerCpuHash
            | Kind::DevMapHash
            | Kind::SocketStorage
            | Kind::ProgramArray
            | Kind::LpmTrie => {
                panic!("{} is not read so", T::NAME)
            }
        }
    }

    /// Writes a row.
    pub fn set<T: Table>(&mut self, key: &T::Key, value: &T::Value) {
        let map = self.map::<T>();
        match T::KIND {
            Kind::Array | Kind::MappedArray | Kind::Global => {
                let mut map: Array<_, Wire<T::Value>> = map.try_into().expect(T::NAME);
                map.set(index(key), Wire(*value), 0).expect(T::NAME);
            }
            Kind::Hash | Kind::LruHash => {
                let mut map: HashMap<_, Wire<T::Key>, Wire<T::Value>> =
                    map.try_into().expect(T::NAME);
                map.insert(Wire(*key), Wire(*value), 0).expect(T::NAME);
                if T::NAME == Services::NAME {
                    let bytes = [bytemuck::bytes_of(key), bytemuck::bytes_of(value)].concat();
                    self.copy_service(&bytemuck::pod_read_unaligned(&bytes));
                }
            }
            Kind::DevMapHash => {
                let mut map: aya::maps::DevMapHash<_> = map.try_into().expect(T::NAME);
                let ifindex = index(key);
                map.insert(ifindex, ifindex, None, 0).expect(T::NAME);
            }
            Kind::LpmTrie => {
                let mut map: LpmTrie<_, [u8; SOURCE_BYTES], Wire<T::Value>> =
                    map.try_into().expect(T::NAME);
                let bits = index(key);
                let data = bytemuck::bytes_of(key)[size_of::<u32>()..].try_into();
                let key = Key::new(bits, data.expect("a source range"));
                map.insert(&key, Wire(*value), 0).expect(T::NAME);
            }
            Kind::PerCpuArray | Kind::PerCpuHash | Kind::SocketStorage | Kind::ProgramArray => {
                panic!("{} is not written so", T::NAME)
            }
        }
    }

    /// Has packets find a service as an agent does, by a copy.
    fn copy_service(&mut self, copy: &ServiceCopy) {
        self.next_copy = self.next_copy % (COPIES - 1) + 1;
        let at = self.next_copy;
        self.set::<ServiceCopies>(&at, copy);
        self.set::<ServiceCells>(&copy.key.cell(), &at.into());
    }

    /// Changes the row of a service that [`Node::service`] made.
    pub fn change_service(
        &mut self,
        addr: &str,
        port: u16,
        proto: Proto,
        change: impl FnOnce(&mut Service),
    ) {
        let key = ServiceKey::new(addr_of(addr), Port::new(port), proto);
        let mut row = self.get::<Services>(&key).expect("a row");
        change(&mut row);
        self.set::<Services>(&key, &row);
    }

    /// Removes a row of a hash table.
    pub fn remove<T: Table>(&mut self, key: &T::Key) {
        let mut map: HashMap<_, Wire<T::Key>, Wire<T::Value>> =
            self.map::<T>().try_into().expect(T::NAME);
        map.remove(&Wire(*key)).expect(T::NAME);
        if T::NAME == Services::NAME {
            let key: ServiceKey = bytemuck::pod_read_unaligned(bytemuck::bytes_of(key));
            self.set::<ServiceCells>(&key.cell(), &0);
        }
    }

    /// All rows of a hash table.
    pub fn rows<T: Table>(&mut self) -> Vec<(T::Key, T::Value)> {
        let map: HashMap<_, Wire<T::Key>, Wire<T::Value>> =
            self.map::<T>().try_into().expect(T::NAME);
        map.iter()
            .map(|row| row.expect(T::NAME))
            .map(|(key, value)| (key.0, value.0))
            .collect()
    }

    /// A per-CPU counter, summed; zero when it has no row.
    pub fn count<T: Table<Value: Counter>>(&mut self, key: &T::Key) -> T::Value {
        let map = self.map::<T>();
        if T::KIND == Kind::PerCpuArray {
            let map: PerCpuArray<_, Wire<T::Value>> = map.try_into().expect(T::NAME);
            return sum(&map.get(&index(key), 0).expect("a row"));
        }
        let map: PerCpuHashMap<_, Wire<T::Key>, Wire<T::Value>> = map.try_into().expect(T::NAME);
        map.get(&Wire(*key), 0)
            .map_or_else(|_| T::Value::default(), |row| sum(&row))
    }

    /// Every reason's counter.
    pub fn reasons(&mut self) -> Vec<Count> {
        let map: PerCpuArray<_, Wire<Count>> =
            self.map::<Reasons>().try_into().expect(Reasons::NAME);
        (0..Reason::COUNT)
            .map(|row| sum(&map.get(&row, 0).expect("a row")))
            .collect()
    }

    fn map<T: Table>(&mut self) -> &mut aya::maps::Map {
        self.ebpf.map_mut(T::IN_OBJECT).expect(T::NAME)
    }
}

fn sum<C: Counter>(per_cpu: &PerCpuValues<Wire<C>>) -> C {
    per_cpu.iter().map(|cpu| cpu.0).fold(C::default(), C::plus)
}

fn index<K: Pod>(key: &K) -> u32 {
    bytemuck::pod_read_unaligned(&bytemuck::bytes_of(key)[..size_of::<u32>()])
}
