/* The peer of `cargo xtask bench usb`: the same work by libusb's asynchronous interface, with nothing around it.
 *
 *   peer VID:PID read BYTES      sequential reads of 1 MiB by bulk-only transport, from block 0 on; prints MB/s
 *   peer VID:PID mapped BYTES    the same into memory that the kernel shares with the host controller
 *   peer VID:PID control N Q     N times GET_DESCRIPTOR, Q in flight; prints microseconds a transfer
 *   peer VID:PID without N Q     the same without deadlines
 *   peer node control N Q        the same on descriptor 99, a usbfs node that is open (node.c), and in time of the processor
 */
#include <libusb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PIECE = 1 << 20, BLOCK = 512, PATIENCE = 30000 };

static void check(int code, const char *doing)
{
	if (code < 0) {
		fprintf(stderr, "peer: %s: %s\n", doing, libusb_error_name(code));
		exit(1);
	}
}

static clockid_t clock_used = CLOCK_MONOTONIC;

static double now(void)
{
	struct timespec time;
	clock_gettime(clock_used, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void LIBUSB_CALL ended(struct libusb_transfer *transfer)
{
	*(int *)transfer->user_data = 1;
}

/* Submits a bulk transfer and handles events until it has ended. */
static void bulk(libusb_device_handle *handle, struct libusb_transfer *transfer, unsigned char endpoint, void *buffer,
		 int length)
{
	int done = 0;
	libusb_fill_bulk_transfer(transfer, handle, endpoint, buffer, length, ended, &done, PATIENCE);
	check(libusb_submit_transfer(transfer), "submitting");
	while (!done)
		check(libusb_handle_events_completed(NULL, &done), "handling events");
	if (transfer->status != LIBUSB_TRANSFER_COMPLETED || transfer->actual_length != length) {
		fprintf(stderr, "peer: endpoint %#x: status %d, %d of %d bytes\n", endpoint, transfer->status,
			transfer->actual_length, length);
		exit(1);
	}
}

static void read_disk(libusb_device_handle *handle, unsigned char in, unsigned char out, long bytes, unsigned char *buffer)
{
	struct libusb_transfer *transfer = libusb_alloc_transfer(0);
	unsigned char status[13];
	double begin = now();
	unsigned blocks = PIECE / BLOCK;
	for (unsigned tag = 1, lba = 0; (long)lba * BLOCK < bytes; tag++, lba += blocks) {
		unsigned char command[31] = { 'U', 'S', 'B', 'C', tag, tag >> 8, tag >> 16, tag >> 24,
			(unsigned char)PIECE, (unsigned char)(PIECE >> 8), (unsigned char)(PIECE >> 16), PIECE >> 24,
			0x80, 0, 10, 0x28, 0, lba >> 24, lba >> 16, lba >> 8, lba, 0, blocks >> 8, blocks };
		bulk(handle, transfer, out, command, sizeof command);
		bulk(handle, transfer, in, buffer, PIECE);
		bulk(handle, transfer, in, status, sizeof status);
		if (memcmp(status, "USBS", 4) || status[12]) {
			fprintf(stderr, "peer: the disk failed\n");
			exit(1);
		}
	}
	printf("%f\n", bytes / 1e6 / (now() - begin));
}

static long left;
static int running;

static void LIBUSB_CALL again(struct libusb_transfer *transfer)
{
	if (transfer->status != LIBUSB_TRANSFER_COMPLETED) {
		fprintf(stderr, "peer: status %d\n", transfer->status);
		exit(1);
	}
	if (left > 0) {
		left--;
		check(libusb_submit_transfer(transfer), "submitting");
	} else {
		running--;
	}
}

static void control(libusb_device_handle *handle, long count, int in_flight, unsigned deadline)
{
	double begin = now();
	left = count - in_flight;
	for (running = 0; running < in_flight; running++) {
		struct libusb_transfer *transfer = libusb_alloc_transfer(0);
		unsigned char *buffer = malloc(LIBUSB_CONTROL_SETUP_SIZE + 18);
		libusb_fill_control_setup(buffer, 0x80, LIBUSB_REQUEST_GET_DESCRIPTOR, 0x0100, 0, 18);
		libusb_fill_control_transfer(transfer, handle, buffer, again, NULL, deadline);
		check(libusb_submit_transfer(transfer), "submitting");
	}
	while (running > 0)
		check(libusb_handle_events(NULL), "handling events");
	printf("%f\n", (now() - begin) * 1e6 / count);
}

int main(int count, char **arguments)
{
	unsigned vendor, product;
	libusb_device_handle *handle = NULL;
	int is_node = count > 4 && !strcmp(arguments[1], "node");
	if (!is_node && (count < 4 || sscanf(arguments[1], "%x:%x", &vendor, &product) != 2))
		return 2;
	if (is_node) {
		clock_used = CLOCK_PROCESS_CPUTIME_ID;
		libusb_set_option(NULL, LIBUSB_OPTION_NO_DEVICE_DISCOVERY);
	}
	check(libusb_init(NULL), "starting libusb");
	if (is_node)
		check(libusb_wrap_sys_device(NULL, 99, &handle), "taking descriptor 99");
	else
		handle = libusb_open_device_with_vid_pid(NULL, vendor, product);
	check(handle ? 0 : LIBUSB_ERROR_NO_DEVICE, "opening");
	check(libusb_claim_interface(handle, 0), "claiming interface 0");
	int is_mapped = !strcmp(arguments[2], "mapped");
	if (is_mapped || !strcmp(arguments[2], "read")) {
		unsigned char in = 0, out = 0;
		struct libusb_config_descriptor *configuration;
		check(libusb_get_active_config_descriptor(libusb_get_device(handle), &configuration), "descriptors");
		const struct libusb_interface_descriptor *interface = &configuration->interface[0].altsetting[0];
		for (int i = 0; i < interface->bNumEndpoints; i++) {
			unsigned char address = interface->endpoint[i].bEndpointAddress;
			*(address & 0x80 ? &in : &out) = address;
		}
		unsigned char *buffer = is_mapped ? libusb_dev_mem_alloc(handle, PIECE) : malloc(PIECE);
		check(buffer ? 0 : LIBUSB_ERROR_NO_MEM, "getting memory");
		read_disk(handle, in, out, atol(arguments[3]), buffer);
	} else {
		control(handle, atol(arguments[3]), count > 4 ? atoi(arguments[4]) : 1,
			strcmp(arguments[2], "without") ? PATIENCE : 0);
	}
	libusb_release_interface(handle, 0);
	libusb_close(handle);
	return 0;
}
