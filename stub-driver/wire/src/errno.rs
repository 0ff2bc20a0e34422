//! The errno values that a reply header carries.

use std::fmt;

/// A UNIX errno in the header's *Error* field ("Header"). Any value can be held, zero included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub u32);

macro_rules! errnos {
    ($($name:ident = $value:literal, $doc:literal;)*) => {
        impl Errno {
            $(#[doc = $doc] pub const $name: Self = Self($value);)*

            /// The symbolic name, if it is one of the constants of this type.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

// Numbers of Linux: include/uapi/asm-generic/errno-base.h and errno.h.
errnos! {
    EPERM = 1, "Operation not permitted.";
    ENOENT = 2, "No such entry, for instance no such mapping.";
    EIO = 5, "Input/output error.";
    E2BIG = 7, "A size is beyond what was negotiated.";
    EAGAIN = 11, "Try again.";
    ENOMEM = 12, "Out of memory.";
    EACCES = 13, "The mapping or region does not allow this access.";
    EFAULT = 14, "Bad address.";
    EBUSY = 16, "Device or resource busy.";
    EEXIST = 17, "The mapping overlaps one that exists.";
    ENODEV = 19, "No such device.";
    EINVAL = 22, "The message is malformed.";
    ENOTTY = 25, "The device has no such feature.";
    ENOSPC = 28, "No room left, for instance for another mapping.";
    ENOSYS = 38, "Function not implemented.";
    EPROTO = 71, "Protocol error.";
    EOPNOTSUPP = 95, "The message is well-formed and not supported.";
    ETIMEDOUT = 110, "Timed out.";
}

impl Errno {
    /// On Linux the same number as [`Errno::EOPNOTSUPP`].
    pub const ENOTSUP: Self = Self::EOPNOTSUPP;
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}
