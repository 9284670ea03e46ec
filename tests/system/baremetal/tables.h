/*
 * Page tables, one set for each CPU
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef TABLES_H
#define TABLES_H

#define ENTRIES             512
#define PRESENT             1
#define WRITABLE            2
#define LARGE               0x80
#define LARGE_PAGE          0x200000

/* Four directories, one for each GiB; their pointers; and the root */
#define TABLES_POINTERS     0x4000
#define TABLES_TOP          0x5000
#define TABLES_SIZE         0x6000

#define CODE32              8
#define DATA                16
#define CODE64              24

#define CR0_PG              0x80000000
#define CR0_NO_CACHE        0x60000000
#define CR4_PAE             0x20
#define MSR_EFER            0xc0000080
#define EFER_LME            0x100

#endif
