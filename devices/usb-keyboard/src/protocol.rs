//! Requests and the boot report (HID, 7.2 and appendix B.1).

/// `bInterfaceClass` HID, `bInterfaceSubClass` boot, `bInterfaceProtocol` keyboard (HID, 4.1 to 4.3).
pub const INTERFACE_CLASS: (u8, u8, u8) = (3, 1, 1);

/// SET_IDLE (HID, 7.2.4): `bmRequestType`, `bRequest`.
pub const SET_IDLE: (u8, u8) = (0x21, 0x0a);
/// SET_PROTOCOL (HID, 7.2.6): 0 in `wValue` is the boot protocol.
pub const SET_PROTOCOL: (u8, u8) = (0x21, 0x0b);

/// Bytes of a boot report: modifiers, one reserved, six keys.
pub const REPORT_LENGTH: usize = 8;

/// The first usage that is a modifier, which are bits in a report (HID Usage Tables, 10).
const LEFT_CONTROL: u8 = 0xe0;

/// Usages below this one are no keys, but errors, such as more keys pressed than can be told (ErrorRollOver, 1).
const FIRST_KEY: u8 = 0x04;

/// A key by its usage on page 7 (HID Usage Tables, section 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u8);

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const NAMED: [&str; 18] = [
            "enter",
            "escape",
            "backspace",
            "tab",
            "space",
            "-",
            "=",
            "[",
            "]",
            "\\",
            "#",
            ";",
            "'",
            "`",
            ",",
            ".",
            "/",
            "caps lock",
        ];
        const MODIFIERS: [&str; 8] = [
            "left control",
            "left shift",
            "left alt",
            "left meta",
            "right control",
            "right shift",
            "right alt",
            "right meta",
        ];
        match self.0 {
            letter @ 0x04..=0x1d => write!(f, "{}", char::from(b'a' + letter - 0x04)),
            digit @ 0x1e..=0x26 => write!(f, "{}", digit - 0x1d),
            0x27 => f.write_str("0"),
            named @ 0x28..=0x39 => f.write_str(NAMED.get(usize::from(named - 0x28)).copied().unwrap_or("?")),
            function @ 0x3a..=0x45 => write!(f, "F{}", function - 0x39),
            0x4f => f.write_str("right"),
            0x50 => f.write_str("left"),
            0x51 => f.write_str("down"),
            0x52 => f.write_str("up"),
            modifier @ 0xe0..=0xe7 => f.write_str(MODIFIERS.get(usize::from(modifier - 0xe0)).copied().unwrap_or("?")),
            other => write!(f, "usage {other:#04x}"),
        }
    }
}

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyEvent {
    /// Which.
    pub key: Key,
    /// It went down; otherwise up.
    pub pressed: bool,
}

/// The keys that are down, in a device's report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report(Vec<Key>);

impl Report {
    /// From a report's bytes: `None` if it is too short, or only says that too many keys are down, which changes nothing
    /// (HID, appendix C).
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let &[modifiers, _reserved, ref keys @ ..] = bytes.first_chunk::<REPORT_LENGTH>()?;
        if keys.iter().any(|key| (1..FIRST_KEY).contains(key)) {
            return None;
        }
        let modifiers = (0..8u8).filter(|bit| modifiers >> bit & 1 == 1).map(|bit| Key(LEFT_CONTROL + bit));
        let mut down: Vec<Key> = modifiers.chain(keys.iter().filter(|key| **key != 0).map(|key| Key(*key))).collect();
        down.sort_unstable();
        down.dedup();
        Some(Self(down))
    }

    /// The report's bytes; keys beyond the sixth are left out.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; REPORT_LENGTH] {
        let mut bytes = [0; REPORT_LENGTH];
        let mut at = 2;
        for key in &self.0 {
            match key.0.checked_sub(LEFT_CONTROL).filter(|bit| *bit < 8) {
                Some(bit) => bytes[0] |= 1 << bit,
                None => {
                    if let Some(slot) = bytes.get_mut(at) {
                        *slot = key.0;
                    }
                    at += 1;
                }
            }
        }
        bytes
    }

    /// With a key down or up.
    pub fn set(&mut self, key: Key, pressed: bool) {
        self.0.retain(|other| *other != key);
        if pressed {
            self.0.push(key);
            self.0.sort_unstable();
        }
    }

    /// What happened between `before` and this: what went up, then what went down.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<KeyEvent> {
        let up = before.0.iter().filter(|key| !self.0.contains(key)).map(|key| KeyEvent { key: *key, pressed: false });
        let down = self.0.iter().filter(|key| !before.0.contains(key)).map(|key| KeyEvent { key: *key, pressed: true });
        up.chain(down).collect()
    }
}
