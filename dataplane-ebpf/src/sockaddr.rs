//! The address that a socket is about to use, between the process and the kernel.
//!
//! Hooks for IPv4 see four bytes and hooks for IPv6 sixteen: both become an [`Addr`], in which an IPv4 address
//! has its mapped form. So `::ffff:192.0.2.1` given to an IPv6 socket is the IPv4 service that it means.
//!
//! Not for what becomes of the address: that is `sock`.
#![expect(
    unsafe_code,
    reason = "the fields of the context are rewritten by the verifier: whole words, and nothing else"
)]

use core::ptr;

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;
use fairlead_common::addr::{Addr, Port, Proto};

/// The address of one call.
pub trait Address {
    /// What the kernel handed over.
    fn context(&self) -> &SockAddrContext;
    /// Reads the address.
    fn addr(&self) -> Addr;
    /// Replaces the address by another one of the same family.
    fn set_addr(&mut self, addr: Addr);

    /// The socket's protocol.
    #[inline(always)]
    fn proto(&self) -> Proto {
        // SAFETY: the context is valid while the program runs.
        Proto(unsafe { ptr::read_volatile(&raw const (*self.raw()).protocol) } as u8)
    }

    /// Reads the port.
    #[inline(always)]
    fn port(&self) -> Port {
        // SAFETY: as in `proto`; the port is the first two bytes of the word.
        Port::from_wire(unsafe { ptr::read_volatile(&raw const (*self.raw()).user_port) } as u16)
    }

    /// Replaces address and port.
    #[inline(always)]
    fn set(&mut self, addr: Addr, port: Port) {
        self.set_addr(addr);
        let port = u32::from(port.wire());
        // SAFETY: as in `port`; the kernel keeps the first two bytes.
        unsafe { ptr::write_volatile(&raw mut (*self.raw()).user_port, port) }
    }

    /// The cookie of the socket's network namespace.
    #[inline(always)]
    fn namespace(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_netns_cookie(self.raw().cast()) }
    }

    /// What the process reads when the call is refused, which is for the program to do: an `errno`.
    #[inline(always)]
    fn set_errno(&self, errno: i32) {
        // SAFETY: no memory. The helper fails for no value between -4095 and 0.
        unsafe { bpf_set_retval(-errno) };
    }

    /// The context's fields.
    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock_addr {
        self.context().sock_addr
    }
}

/// An address of the IPv4 hooks.
pub struct V4(SockAddrContext);

impl V4 {
    /// Takes over a context of an IPv4 hook.
    pub const fn new(context: SockAddrContext) -> Self {
        Self(context)
    }
}

impl Address for V4 {
    #[inline(always)]
    fn context(&self) -> &SockAddrContext {
        &self.0
    }

    #[inline(always)]
    fn addr(&self) -> Addr {
        // SAFETY: the context is valid while the program runs.
        Addr::from_v4_word(unsafe { ptr::read_volatile(&raw const (*self.raw()).user_ip4) })
    }

    #[inline(always)]
    fn set_addr(&mut self, addr: Addr) {
        // SAFETY: as in `addr`.
        unsafe { ptr::write_volatile(&raw mut (*self.raw()).user_ip4, addr.v4_word()) }
    }
}

/// An address of the IPv6 hooks.
pub struct V6(SockAddrContext);

impl V6 {
    /// Takes over a context of an IPv6 hook.
    pub const fn new(context: SockAddrContext) -> Self {
        Self(context)
    }

    /// The address as two words: the verifier takes four words of four bytes or two of eight.
    #[inline(always)]
    fn halves(&self) -> *mut u64 {
        // SAFETY: a field of the context, which is valid while the program runs; eight bytes into it.
        unsafe { (&raw mut (*self.raw()).user_ip6).cast() }
    }
}

impl Address for V6 {
    #[inline(always)]
    fn context(&self) -> &SockAddrContext {
        &self.0
    }

    #[inline(always)]
    fn addr(&self) -> Addr {
        // SAFETY: as in `halves`.
        Addr::from_v6_halves(unsafe {
            [
                self.halves().read_volatile(),
                self.halves().add(1).read_volatile(),
            ]
        })
    }

    #[inline(always)]
    fn set_addr(&mut self, addr: Addr) {
        let [first, second] = addr.halves();
        // SAFETY: as in `halves`.
        unsafe {
            self.halves().write_volatile(first);
            self.halves().add(1).write_volatile(second);
        }
    }
}
