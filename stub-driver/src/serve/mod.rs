//! `stub-driver serve`: exports any [`Backend`](udrv_backend::Backend) over a vfio-user socket.
//!
//! To serve a device of your own from your own process:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! # let my_device = udrv_edu::model::edu();
//! use stub_driver::serve::{DeviceServer, Export};
//!
//! let export = Export::shared("mine", std::sync::Arc::new(my_device));
//! let server = DeviceServer::start(export, std::path::Path::new("/tmp/mine.sock"))?;
//! // Served until `server` is dropped: udrv info unix:/tmp/mine.sock
//! # drop(server);
//! # Ok(())
//! # }
//! ```
//!
//! A client has the device for one *lease*, from its VERSION message until it disconnects, however that comes about. What
//! a client sends may end its own lease and nothing else: every wait has a deadline, every allocation a bound, and each
//! device has threads of its own.

mod accept;
mod access;
mod client;
mod command;
mod config;
mod control;
mod device;
mod dma;
mod export;
mod hold;
mod irqs;
mod lease;
mod pass_on;
mod recordings;
mod refusal;
mod server;
mod session;
mod slot;
mod socket;
mod standing;

pub(crate) use command::SOCKET_DIR;
pub use command::{ServeArgs, run};
pub use config::{Config, DeviceConfig};
pub(crate) use control::SOCKET as CONTROL_SOCKET;
pub use control::{ControlServer, DeviceStatus, LeaseStatus, Reply, Request, Status};
pub use device::DeviceAddress;
pub use export::{Export, Opened};
pub use hold::{HoldStatus, Waiting};
pub use recordings::Recordings;
pub use server::{DeviceServer, PATIENCE};
