/*
 * What busybox has no command for, one verb each; the status tells the outcome.
 *
 *   probe default-int COMMAND...     run it with SIGINT not ignored (a shell's background child ignores it)
 *   probe setxattr FILE NAME VALUE
 *   probe getxattr FILE NAME         print the value
 *   probe listxattr FILE             print the names, a line each
 *   probe removexattr FILE NAME
 *   probe lock FILE COMMAND...       hold a write lock (fcntl) on the first byte while the command runs
 *   probe trylock FILE               0: got the lock, 3: another holds it
 *   probe getlock FILE               print "free" or the kind of lock that stands in the way
 *   probe append FILE TEXT           open with O_APPEND, write once
 *   probe mmap FILE                  map it, print it
 *   probe unlinked FILE              open, unlink, write, read back, print what was read
 *   probe fsync FILE TEXT            write and fsync
 *   probe follow FILE COUNT          open with O_NONBLOCK, print what COUNT reads give. Without that flag the
 *                                    kernel's 9p asks the server again and again until the buffer is full.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { HELD_ELSEWHERE = 3 };

static int
must(const char *what, int result)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

static int
default_int(char **argv)
{
	signal(SIGINT, SIG_DFL);
	execvp(argv[0], argv);
	err(127, "%s", argv[0]);
}

static int
set_xattr(char **argv)
{
	must("setxattr", setxattr(argv[0], argv[1], argv[2], strlen(argv[2]), 0));
	return 0;
}

static int
get_xattr(char **argv)
{
	char value[65536];
	int n = must("getxattr", getxattr(argv[0], argv[1], value, sizeof value));

	printf("%.*s\n", n, value);
	return 0;
}

static int
list_xattr(char **argv)
{
	char names[65536];
	int n = must("listxattr", listxattr(argv[0], names, sizeof names));

	for (char *name = names; name < names + n; name += strlen(name) + 1)
		puts(name);
	return 0;
}

static int
remove_xattr(char **argv)
{
	must("removexattr", removexattr(argv[0], argv[1]));
	return 0;
}

static struct flock
first_byte(void)
{
	return (struct flock){ .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1 };
}

static int
lock(char **argv)
{
	struct flock range = first_byte();
	int fd = must("open", open(argv[0], O_RDWR));
	int status;

	must("lock", fcntl(fd, F_SETLK, &range));
	if (must("fork", fork()) == 0) {
		execvp(argv[1], argv + 1);
		err(127, "%s", argv[1]);
	}
	must("wait", wait(&status));
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static int
try_lock(char **argv)
{
	struct flock range = first_byte();
	int fd = must("open", open(argv[0], O_RDWR));

	if (fcntl(fd, F_SETLK, &range) == 0)
		return 0;
	if (errno == EAGAIN || errno == EACCES)
		return HELD_ELSEWHERE;
	err(1, "lock");
}

static int
get_lock(char **argv)
{
	struct flock range = first_byte();
	int fd = must("open", open(argv[0], O_RDWR));

	must("getlk", fcntl(fd, F_GETLK, &range));
	puts(range.l_type == F_UNLCK ? "free" : range.l_type == F_WRLCK ? "write" : "read");
	return 0;
}

static int
append(char **argv)
{
	int fd = must("open", open(argv[0], O_WRONLY | O_APPEND));

	must("write", write(fd, argv[1], strlen(argv[1])));
	return must("close", close(fd));
}

static int
map(char **argv)
{
	struct stat st;
	int fd = must("open", open(argv[0], O_RDONLY));
	char *bytes;

	must("fstat", fstat(fd, &st));
	bytes = mmap(NULL, st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (bytes == MAP_FAILED)
		err(1, "mmap");
	fwrite(bytes, 1, st.st_size, stdout);
	return 0;
}

static int
unlinked(char **argv)
{
	static const char said[] = "still here\n";
	char heard[sizeof said] = "";
	int fd = must("open", open(argv[0], O_RDWR | O_CREAT, 0600));

	must("unlink", unlink(argv[0]));
	must("write", write(fd, said, sizeof said - 1));
	must("read", pread(fd, heard, sizeof said - 1, 0));
	fputs(heard, stdout);
	return must("close", close(fd));
}

static int
sync_file(char **argv)
{
	int fd = must("open", open(argv[0], O_WRONLY | O_CREAT | O_TRUNC, 0600));

	must("write", write(fd, argv[1], strlen(argv[1])));
	must("fsync", fsync(fd));
	return must("close", close(fd));
}

static int
follow(char **argv)
{
	char line[65536];
	int fd = must("open", open(argv[0], O_RDONLY | O_NONBLOCK));

	for (int left = atoi(argv[1]); left > 0; left--) {
		int n = must("read", read(fd, line, sizeof line));

		fwrite(line, 1, n, stdout);
		fflush(stdout);
	}
	return must("close", close(fd));
}

static const struct {
	const char *name;
	int arguments_min;
	int (*run)(char **argv);
} verbs[] = {
	{ "default-int", 1, default_int },
	{ "setxattr", 3, set_xattr },
	{ "getxattr", 2, get_xattr },
	{ "listxattr", 1, list_xattr },
	{ "removexattr", 2, remove_xattr },
	{ "lock", 2, lock },
	{ "trylock", 1, try_lock },
	{ "getlock", 1, get_lock },
	{ "append", 2, append },
	{ "mmap", 1, map },
	{ "unlinked", 1, unlinked },
	{ "fsync", 2, sync_file },
	{ "follow", 2, follow },
};

int
main(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < sizeof verbs / sizeof verbs[0]; i++)
		if (strcmp(argv[1], verbs[i].name) == 0 && argc - 2 >= verbs[i].arguments_min)
			return verbs[i].run(argv + 2);
	errx(2, "usage: probe VERB FILE ...; see probe.c");
}
