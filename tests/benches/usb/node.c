/* A usbfs node that costs nothing, for the layers above the kernel to be measured by: descriptor 99 is a device whose every
 * transfer has ended, with success, as soon as it is submitted. Preloaded (LD_PRELOAD) into us and into the peer alike.
 *
 * It is a pipe of one page: full, and so not ready to be written to, as long as there is nothing to reap, as a real node is.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ioctl.h>
#include <linux/usbdevice_fs.h>
#include <pthread.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NODE = 99, OTHER_END = 98, MOST = 1024 };

static const unsigned char descriptors[] = {
	18, 1, 0x00, 0x02, 0xff, 0, 0, 64, 0x09, 0x12, 0x01, 0x00, 0, 1, 0, 0, 0, 1,
	9, 2, 32, 0, 1, 1, 0, 0x80, 50,
	9, 4, 0, 0, 2, 0xff, 0, 0, 0,
	7, 5, 0x81, 2, 0x00, 0x02, 0,
	7, 5, 0x02, 2, 0x00, 0x02, 0,
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct usbdevfs_urb *ended[MOST];
static unsigned first, count;
static off_t at;

__attribute__((constructor)) static void open_node(void)
{
	int ends[2];
	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK))
		_exit(3);
	dup2(ends[1], NODE);
	dup2(ends[0], OTHER_END);
	close(ends[0]);
	close(ends[1]);
	fcntl(NODE, F_SETPIPE_SZ, 4096);
	if (syscall(SYS_write, NODE, "", 1) != 1)
		_exit(3);
}

/* Whether it is the node, which a lease passes on under another number; asked once, as long as the number is not closed. */
static signed char known[MOST];

static int is_node(int fd)
{
	struct stat this, node;
	if (fd < 0 || fd >= MOST || fd == OTHER_END)
		return 0;
	if (!known[fd])
		known[fd] = fstat(fd, &this) || fstat(NODE, &node) || this.st_ino != node.st_ino || this.st_dev != node.st_dev
			? -1 : 1;
	return known[fd] > 0;
}

static int fail(int error)
{
	errno = error;
	return -1;
}

static int submit(struct usbdevfs_urb *urb)
{
	char byte;
	int result = 0;
	urb->status = 0;
	urb->actual_length = urb->buffer_length - (urb->type == USBDEVFS_URB_TYPE_CONTROL ? 8 : 0);
	pthread_mutex_lock(&lock);
	if (count == MOST)
		result = fail(ENOMEM);
	else {
		ended[(first + count++) % MOST] = urb;
		/* Each end wakes whoever polls, as a real node's does, also one that was told of an earlier one. */
		if (count > 1 && syscall(SYS_write, NODE, "", 1) != 1)
			result = -1;
		if (syscall(SYS_read, OTHER_END, &byte, 1) != 1)
			result = -1;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

static int reap(void **urb)
{
	int result = 0;
	pthread_mutex_lock(&lock);
	if (count == 0)
		result = fail(EAGAIN);
	else {
		*urb = ended[first];
		first = (first + 1) % MOST;
		if (--count == 0 && syscall(SYS_write, NODE, "", 1) != 1)
			result = -1;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list list;
	va_start(list, request);
	void *argument = va_arg(list, void *);
	va_end(list);
	if (!is_node(fd))
		return syscall(SYS_ioctl, fd, request, argument);
	switch (request) {
	case USBDEVFS_SUBMITURB:
		return submit(argument);
	case USBDEVFS_REAPURBNDELAY:
		return reap(argument);
	case USBDEVFS_GET_CAPABILITIES:
		*(unsigned *)argument = USBDEVFS_CAP_ZERO_PACKET | USBDEVFS_CAP_NO_PACKET_SIZE_LIM |
			USBDEVFS_CAP_BULK_SCATTER_GATHER | USBDEVFS_CAP_REAP_AFTER_DISCONNECT;
		return 0;
	case USBDEVFS_CONNECTINFO:
		memset(argument, 0, sizeof(struct usbdevfs_connectinfo));
		((struct usbdevfs_connectinfo *)argument)->devnum = 2;
		return 0;
	case USBDEVFS_CONTROL: /* GET_CONFIGURATION */
		*(unsigned char *)((struct usbdevfs_ctrltransfer *)argument)->data = 1;
		return 1;
	case USBDEVFS_GETDRIVER:
		return fail(ENODATA);
	default: /* claiming and releasing */
		return 0;
	}
}

int close(int fd)
{
	if (fd >= 0 && fd < MOST)
		known[fd] = 0;
	return syscall(SYS_close, fd);
}

ssize_t pread64(int fd, void *buffer, size_t length, off64_t from)
{
	if (!is_node(fd))
		return syscall(SYS_pread64, fd, buffer, length, from);
	size_t left = from < (off64_t)sizeof descriptors ? sizeof descriptors - from : 0;
	if (length > left)
		length = left;
	memcpy(buffer, descriptors + sizeof descriptors - left, length);
	return length;
}

ssize_t pread(int fd, void *buffer, size_t length, off_t from)
{
	return pread64(fd, buffer, length, from);
}

ssize_t read(int fd, void *buffer, size_t length)
{
	if (!is_node(fd))
		return syscall(SYS_read, fd, buffer, length);
	ssize_t got = pread64(fd, buffer, length, at);
	at += got;
	return got;
}

off_t lseek(int fd, off_t offset, int whence)
{
	return is_node(fd) ? (at = offset) : syscall(SYS_lseek, fd, offset, whence);
}

/* libusb does not begin without nodes, on a machine that has none: so the folder of nodes is any other. */
DIR *opendir(const char *path)
{
	DIR *(*real)(const char *) = (DIR * (*)(const char *)) dlsym(RTLD_NEXT, "opendir");
	return real(strcmp(path, "/dev/bus/usb") ? path : "/");
}
