//! How many frames each packet carries, so that over time there are as many as the clock says.

/// Counts frames out, exactly: a packet's share is a fraction whose denominator is `whole`.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// A packet's share by the rate that was set.
    nominal: u64,
    share: u64,
    /// Not sent yet; less than a frame.
    left: u64,
    /// One frame.
    whole: u64,
    /// Units of time of the bus in a second, and from packet to packet.
    in_second: u64,
    units: u64,
}

impl Pace {
    /// `rate` frames a second, in packets that follow each other after `units` of time, of which there are `in_second`.
    #[must_use]
    pub fn new(rate: u32, (units, in_second): (u32, u32)) -> Self {
        let (units, in_second) = (u64::from(units), u64::from(in_second.max(1)));
        let nominal = (u64::from(rate) << 16) * units;
        Self { nominal, share: nominal, left: 0, whole: in_second << 16, in_second, units }
    }

    /// The frames of the next packet.
    pub fn packet(&mut self) -> u32 {
        self.left += self.share;
        let frames = self.left / self.whole;
        self.left %= self.whole;
        u32::try_from(frames).unwrap_or(u32::MAX)
    }

    /// What the device says that it takes in a unit of time (USB 2.0, 5.12.4.2): three bytes of 10.14 at full speed, four of
    /// 16.16 at high speed. What is further than an eighth from the rate that was set is not believed. Whether it was.
    pub fn feedback(&mut self, bytes: &[u8]) -> bool {
        let told = match *bytes {
            [a, b, c] => u64::from(u32::from_le_bytes([a, b, c, 0])) << 2,
            [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
            _ => return false,
        };
        let share = told * self.units * self.in_second;
        let believable = share.abs_diff(self.nominal) <= self.nominal / 8;
        if believable {
            self.share = share;
        }
        believable
    }
}
