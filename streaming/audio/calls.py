"""The system calls that a process which decodes gives up: a filter in the kernel (seccomp), for good.

A list of what is refused, not of what is allowed: what a C library calls for memory, time and threads differs between
systems, and a decoder that breaks on a new one helps nobody. Refused is whatever opens, makes or changes a file by its
name, a socket, a process or a program, and whatever reaches into another process or round this filter.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import struct
import sys
from contextlib import suppress

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""The column of `REFUSED`, and the name the kernel gives the architecture."""
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # Files.
    "open": (2, None),
    "creat": (85, None),
    "openat": (257, 56),
    "openat2": (437, 437),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "truncate": (76, 45),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "link": (86, None),
    "linkat": (265, 37),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "chmod": (90, None),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "uselib": (134, None),
    # What is mounted where.
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "unshare": (272, 97),
    "setns": (308, 268),
    # Sockets.
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # Processes and programs.
    "fork": (57, None),
    "vfork": (58, None),
    "clone": (56, 220),
    "clone3": (435, 435),
    "execve": (59, 221),
    "execveat": (322, 281),
    # Other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    # The machine, which obeys who is root on it.
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    # Ways round, and doors that have stood open before.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
"""Numbers on x86-64 and on 64-bit ARM; None where there is no such call."""
TO_OTHERS: dict[str, tuple[tuple[int, int], int, tuple[int, ...]]] = {
    "fcntl": ((72, 25), 1, (8, 15)),  # F_SETOWN, F_SETOWN_EX: a signal to whoever that is
    "ioctl": ((16, 29), 1, (0x8901, 0x8902)),  # FIOSETOWN, SIOCSPGRP: the same
    "prlimit64": ((302, 261), 0, ()),  # of another process
}
"""Calls that reach other processes by an argument: numbers as above, which argument, and its values that are refused;
where there are none, all but 0."""

_LOAD, _EQUAL, _AT_LEAST, _ANSWER = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def program(machine: str) -> bytes | None:
    """The filter, as the kernel reads it; None for a machine whose numbers we do not have."""
    if machine not in _MACHINES:
        return None
    column, architecture = _MACHINES[machine]
    refuse = (_ANSWER, 0, 0, _ERROR | errno.EPERM)
    steps = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture),
        (_ANSWER, 0, 0, _KILL),  # numbers of another architecture mean other calls
        (_LOAD, 0, 0, 0),
    ]
    if machine == "x86_64":
        steps += [(_AT_LEAST, 0, 1, 0x40000000), refuse]  # the same calls by other numbers (x32)
    for numbers in REFUSED.values():
        number = numbers[column]
        if number is not None:
            steps += [(_EQUAL, 0, 1, number), refuse]
    for both, argument, values in TO_OTHERS.values():
        look = [(_LOAD, 0, 0, 16 + 8 * argument)]  # its lower half; these calls read no more
        for value in values:
            look += [(_EQUAL, 0, 1, value), refuse]
        if not values:
            look += [(_EQUAL, 1, 0, 0), refuse]
        look.append((_LOAD, 0, 0, 0))
        steps += [(_EQUAL, 0, len(look), both[column]), *look]
    steps.append((_ANSWER, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *each) for each in steps)


def leave(libc: ctypes.CDLL) -> bool:
    """From now on every call in `REFUSED` or `TO_OTHERS` fails with EPERM; False where the system does not do that.

    The process must have given up new privileges before (PR_SET_NO_NEW_PRIVS).
    """
    if not sys.platform.startswith("linux") or sys.maxsize < 2**32:
        return False
    found = program(os.uname().machine)
    if found is None:
        return False
    code = ctypes.create_string_buffer(found, len(found))
    head = array.array("Q", [len(found) // 8, ctypes.addressof(code)]).tobytes()
    set_filter, mode = 22, 2
    with suppress(AttributeError):
        return bool(libc.prctl(set_filter, mode, head, 0, 0) == 0)
    return False
