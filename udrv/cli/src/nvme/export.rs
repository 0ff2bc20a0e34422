//! A namespace as a block device for other programs.

use crate::nbd::{Disk, Geometry, Server, bind};
use std::path::PathBuf;
use udrv::host::Context;
use udrv_backend::Result;
use udrv_nvme::driver::{Controller, IoQueue, Namespace, Optional, QueueConfig, Range};

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
        let mut disks = Vec::new();
        for _ in 0..self.connections.min(controller.queues()) {
            disks.push(Exported { queue: controller.io_queue(config)?, namespace });
        }
        let listener = bind(&self.socket)?;
        let (socket, address) = (self.socket.display(), &context.device.info().address);
        println!("namespace {} of {address} is at nbd:{socket}, for {} clients", self.namespace, disks.len());
        Server::new(geometry, disks).run(&listener, &|| context.should_stop())
    }
}

/// What one connection has of the namespace.
struct Exported {
    queue: IoQueue,
    namespace: Namespace,
}

impl Exported {
    const fn block(&self, offset: u64) -> u64 {
        offset / self.namespace.block_size
    }

    const fn range(&self, offset: u64, length: u32) -> Range {
        Range { lba: self.block(offset), blocks: length / self.namespace.block_size as u32 }
    }
}

impl Disk for Exported {
    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.queue.read(&self.namespace, self.block(offset), into)
    }

    fn write(&mut self, offset: u64, from: &[u8], durable: bool) -> Result<()> {
        let block = self.block(offset);
        if durable {
            self.queue.write_through(&self.namespace, block, from)
        } else {
            self.queue.write(&self.namespace, block, from)
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.queue.flush(&self.namespace)
    }

    fn trim(&mut self, offset: u64, length: u32) -> Result<()> {
        self.queue.trim(&self.namespace, &[self.range(offset, length)])
    }

    fn zero(&mut self, offset: u64, length: u32) -> Result<()> {
        self.queue.write_zeroes(&self.namespace, self.range(offset, length))
    }
}
