//! A namespace as a block device for other programs.

use super::requests::Requests;
use crate::nbd::{Geometry, Server, bind};
use std::path::PathBuf;
use udrv::host::Context;
use udrv_backend::Result;
use udrv_nvme::driver::{Controller, Optional, QueueConfig};

/// Commands that each connection's queue has under way at a time, at most, and those of all: each may take a buffer each way.
const DEPTH: u16 = 32;
const IN_ALL: u16 = 512;

pub(super) struct Export {
    pub(super) socket: PathBuf,
    pub(super) namespace: u32,
    pub(super) connections: u16,
    pub(super) read_only: bool,
}

impl Export {
    pub(super) fn serve(self, controller: &mut Controller, context: &Context, config: QueueConfig) -> Result<()> {
        let namespace = controller.namespace(self.namespace)?;
        let optional = controller.info().optional;
        let geometry = Geometry {
            bytes: namespace.bytes(),
            block_size: namespace.block_size as u32,
            read_only: self.read_only,
            can_trim: optional.contains(Optional::DATASET_MANAGEMENT),
            can_zero: optional.contains(Optional::WRITE_ZEROES),
        };
        let connections = self.connections.min(controller.queues());
        let config = QueueConfig { depth: (IN_ALL / connections).clamp(1, DEPTH), ..config };
        let mut disks = Vec::new();
        for _ in 0..connections {
            let queue = controller.io_queue(config)?;
            disks.push(Requests::new(queue, namespace, controller.pool().clone(), config.timeout));
        }
        let listener = bind(&self.socket)?;
        let (socket, address) = (self.socket.display(), &context.device.info().address);
        println!("namespace {} of {address} is at nbd:{socket}, for {} clients", self.namespace, disks.len());
        Server::new(geometry, disks).run(&listener, &|| context.should_stop())
    }
}
