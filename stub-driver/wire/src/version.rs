//! VERSION, request and reply alike: section "`VFIO_USER_VERSION`".

use crate::codec::{Reader, Writer};
use crate::{Command, WireError};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// The first message of a connection, and its reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Major version: 0 today. Request and reply must agree.
    pub major: u16,
    /// Minor version: the reply's is at most the request's.
    pub minor: u16,
    /// What the sender supports; defaults where it did not say.
    pub capabilities: Capabilities,
}

/// The capabilities table of the version data. Keys not listed here are ignored, missing ones take the table's defaults.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// File descriptors that the sender accepts with one message. Default 1.
    pub max_msg_fds: u32,
    /// Bytes of data that the sender accepts in one message. Default 1 MiB.
    pub max_data_xfer_size: u64,
    /// DMA mappings that the sender allows at a time. Default 65535.
    pub max_dma_maps: u64,
    /// Page sizes for DMA mappings, in bytes, or'ed together. Default 4096.
    pub pgsizes: u64,
    /// Whether commands from server to client go over a socket of their own.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub twin_socket: Option<TwinSocket>,
    /// Whether the sender supports REGION_WRITE_MULTI. Default false.
    pub write_multiple: bool,
}

/// The `twin_socket` capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct TwinSocket {
    /// Request: the client can do it. Reply: the server does it.
    pub supported: bool,
    /// Reply only: which of the message's file descriptors is the socket.
    #[serde(deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    pub fd_index: Option<u32>,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            max_msg_fds: 1,
            max_data_xfer_size: 0x10_0000,
            max_dma_maps: 65535,
            pgsizes: 4096,
            twin_socket: None,
            write_multiple: false,
        }
    }
}

/// The whole version data.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct VersionData {
    #[serde(deserialize_with = "object")]
    capabilities: Capabilities,
}

impl Version {
    /// Reads the payload of a VERSION request or reply. No version data, or data that is only NUL, means all defaults.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(Command::VERSION, payload, 4)?;
        let major = reader.u16()?;
        let minor = reader.u16()?;
        let capabilities = decode_data(reader.rest())?;
        Ok(Self { major, minor, capabilities })
    }

    /// The payload of a VERSION request or reply.
    pub fn encode(&self) -> Vec<u8> {
        let json = serde_json::json!({ "capabilities": self.capabilities }).to_string();
        Writer::default().u16(self.major).u16(self.minor).bytes(json.as_bytes()).bytes(&[0]).done()
    }
}

fn decode_data(data: &[u8]) -> Result<Capabilities, WireError> {
    let json = |reason: String| WireError::Json { reason };
    let text = match data.split_last() {
        None | Some((0, [])) => return Ok(Capabilities::default()),
        Some((0, text)) => text,
        Some(_) => return Err(json("no terminating NUL".into())),
    };
    let mut de = serde_json::Deserializer::from_slice(text);
    let data: VersionData = object(&mut de).map_err(|e| json(e.to_string()))?;
    de.end().map_err(|e| json(e.to_string()))?;
    Ok(data.capabilities)
}

/// Deserializes a struct from a JSON object only: serde's own derive would take an array of the fields as well.
fn object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct ObjectVisitor<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_map(ObjectVisitor(PhantomData))
}

/// An optional object: absent is `None`, but `null` is an error.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    object(deserializer).map(Some)
}

/// An optional value: absent is `None`, but `null` is an error.
fn some<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
