#!/bin/bash
# The sound driver on QEMU's usb-audio, which writes what it plays into a WAV file: what was played is in it, sample for sample. It only
# plays, so capturing is shown on our model, imported by the kernel over USB/IP.
# deadline: 400
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib-usb.sh"

modprobe -a xhci_pci snd-usb-audio || fail "cannot load the drivers"
within 20 usb_port_of 46f4:0002 >/dev/null
port=$(usb_port_of 46f4:0002)
kernel_has_it() { link=$(readlink "/sys/bus/usb/devices/$port:1.1/driver") && [ "${link##*/}" = snd-usb-audio ]; }
within 20 kernel_has_it
UDRV=$UDRV_BIN/udrv

echo "# what it has"
"$UDRV" run usb-audio --device "usb:$port" info >/tmp/info || fail "no info"
grep -qx "plays 2 x 16 bits at 48000 Hz" /tmp/info || fail "$(cat /tmp/info)"

echo "# a file, and a tone"
python3 - <<'P'
import struct, wave
frames = b"".join(struct.pack("<hh", (at * 7919) % 65536 - 32768 | 1, (at * 104729) % 65536 - 32768 | 1) for at in range(48000))
with wave.open("/tmp/played.wav", "wb") as file:
    file.setparams((2, 2, 48000, 0, "NONE", ""))
    file.writeframes(frames)
P
"$UDRV" run usb-audio --device "usb:$port" play --volume max /tmp/played.wav 2>/tmp/log || fail "$(cat /tmp/log)"
grep -q "played 48000 frames at 48000 Hz: 0 underruns, 0 packets lost" /tmp/log || fail "$(cat /tmp/log)"
"$UDRV" run usb-audio --device "usb:$port" tone --hz 1000 --seconds 0.5 2>/tmp/log || fail "$(cat /tmp/log)"
within 20 kernel_has_it

echo "# another has it"
alternate_is_set() { [ "$(cat "/sys/bus/usb/devices/$port:1.1/bAlternateSetting")" -eq 1 ]; }
"$UDRV" run usb-audio --device "usb:$port" tone --seconds 60 2>/tmp/log1 &
driver=$!
within 90 alternate_is_set
if "$UDRV" run usb-audio --device "usb:$port" play /tmp/played.wav 2>/tmp/log; then fail "two drivers at a time"; fi
grep -q "usb:$port" /tmp/log || fail "not told which: $(cat /tmp/log)"
kill -TERM "$driver"
wait "$driver" || [ $? -eq 143 ] || fail "exit status $?: $(cat /tmp/log1)"
within 20 kernel_has_it

echo "# what the device cannot do, and what is no sound"
for ending in "tone --rate 44100" "capture /tmp/captured.wav" "play /proc/version"; do
    if "$UDRV" run usb-audio --device "usb:$port" $ending 2>/tmp/log; then fail "done: $ending"; fi
    [ "$(wc -l </tmp/log)" -eq 1 ] || fail "more than one line: $(cat /tmp/log)"
done
if "$UDRV" run usb-audio --device usb:dead:beef info 2>/tmp/log; then fail "a device that is not there"; fi
grep -q "dead:beef" /tmp/log || fail "$(cat /tmp/log)"

echo "# pulled out while it plays; then QEMU has closed its file"
"$UDRV" run usb-audio --device "usb:$port" tone --seconds 12 2>/tmp/log &
driver=$!
within 40 alternate_is_set
monitor device_del usbaudio
if wait "$driver"; then fail "no error: $(cat /tmp/log)"; fi
grep -q gone /tmp/log || fail "$(cat /tmp/log)"
is_unplugged() { ! usb_port_of 46f4:0002 >/dev/null; }
within 20 is_unplugged
cp "$UDRV_VM_RUN/usbaudio.wav" /tmp/heard.wav
monitor device_add usb-audio,bus=xhci.0,port=4,audiodev=audio,id=usbaudio
within 30 usb_port_of 46f4:0002 >/dev/null

python3 - <<'P' || fail "what was heard"
import array, math
heard = array.array("h", open("/tmp/heard.wav", "rb").read()[44:])
played = array.array("h", open("/tmp/played.wav", "rb").read()[44:])
# silence before it is not heard, and the first frame is none
start = next(at for at, sample in enumerate(heard) if sample)
start -= start % 2
same = sum(abs(a - b) <= 1 for a, b in zip(heard[start:], played))
print(f"{same} of {len(played)} samples are the same, from {start} on")
assert same == len(played)
# a tone of 1 kHz afterwards: 48 frames from one rising edge to the next
rest = heard[start + len(played)::2]
first = next(at for at, sample in enumerate(rest) if abs(sample) > 100)
tone = rest[first:first + 12000]
edges = [at for at in range(1, len(tone)) if tone[at - 1] < 0 <= tone[at]]
assert len(edges) > 240 and all(b - a in (47, 48, 49) for a, b in zip(edges, edges[1:])), edges[:10]
P

echo "# captured: our model, imported over USB/IP, is a device on the kernel's usbfs; what it hears is a number counted up"
modprobe vhci-hcd || fail "cannot load vhci-hcd"
"$UDRV_BIN/stub-driver" usb export model:usb-audio >/run/export.log 2>&1 &
STUB=$!
exporting() {
    kill -0 "$STUB" 2>/dev/null || fail "the stub ended: $(cat /run/export.log)"
    grep -qx ready /run/export.log
}
within 20 exporting
usbip attach -r 127.0.0.1 -b 0-1 || fail "usbip cannot attach"
within 30 usb_port_of 1209:0006 >/dev/null
port=$(usb_port_of 1209:0006)
within 30 kernel_has_it
"$UDRV" run usb-audio --device "usb:$port" info >/tmp/info || fail "no info"
grep -qx "captures 1 x 16 bits at 44100, 48000 Hz" /tmp/info || fail "$(cat /tmp/info)"
for rate in 48000 44100; do
    "$UDRV" run usb-audio --device "usb:$port" capture --seconds 1 --rate $rate /tmp/captured.wav 2>/tmp/log ||
        fail "$(cat /tmp/log)"
    grep -q "captured $rate frames at $rate Hz: 0 packets lost" /tmp/log || fail "$(cat /tmp/log)"
    python3 - $rate <<'P' || fail "what was captured"
import array, sys, wave
with wave.open("/tmp/captured.wav") as file:
    assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, int(sys.argv[1])), file.getparams()
    heard = array.array("h", file.readframes(file.getnframes()))
assert len(heard) == int(sys.argv[1]), len(heard)
wrong = [at for at, (a, b) in enumerate(zip(heard, heard[1:])) if (b - a) % 65536 != 1]
assert not wrong, f"frames lost after {wrong[:10]}"
P
done
within 20 kernel_has_it

echo "# pulled out while it captures"
"$UDRV" run usb-audio --device "usb:$port" capture --seconds 900 /tmp/captured.wav 2>/tmp/log &
driver=$!
captures() { [ "$(cat "/sys/bus/usb/devices/$port:1.2/bAlternateSetting")" -eq 1 ]; }
within 40 captures
usbip detach -p "$(usbip port 2>/dev/null | sed -n 's/^Port \([0-9]*\):.*/\1/p' | head -1)" 2>/dev/null
if wait "$driver"; then fail "no error: $(cat /tmp/log)"; fi
grep -q gone /tmp/log || fail "$(cat /tmp/log)"
kill -TERM "$STUB"
wait "$STUB" || fail "the stub's exit status is $?: $(cat /run/export.log)"
