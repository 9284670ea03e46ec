/*
 * From the reset vector to C, in 64-bit mode
 *
 * The first CPU starts at the reset vector, at the end of the image; others,
 * once they are woken, at its beginning.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "tables.h"

    .code16
    .section .start, "ax"
    .globl start
start:
    cli
    lgdtl   %cs:(gdt_pointer - start)
    movl    %cr0, %eax
    orb     $1, %al
    movl    %eax, %cr0
    ljmpl   $CODE32, $protected

    .code32
protected:
    movw    $DATA, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movw    %ax, %ss
    /* The initial APIC ID is the CPU's index. */
    movl    $1, %eax
    cpuid
    shrl    $24, %ebx
    movl    %ebx, %edi
    imull   $TABLES_SIZE, %edi
    leal    tables(%edi), %edi

    /* Each address is itself; these are all of the low 4 GiB. */
    movl    $(PRESENT | WRITABLE | LARGE), %eax
    xorl    %ecx, %ecx
1:  movl    %eax, (%edi, %ecx, 8)
    addl    $LARGE_PAGE, %eax
    incl    %ecx
    cmpl    $(4 * ENTRIES), %ecx
    jne     1b
    leal    (PRESENT | WRITABLE)(%edi), %eax
    xorl    %ecx, %ecx
2:  movl    %eax, TABLES_POINTERS(%edi, %ecx, 8)
    addl    $4096, %eax
    incl    %ecx
    cmpl    $4, %ecx
    jne     2b
    leal    (TABLES_POINTERS | PRESENT | WRITABLE)(%edi), %eax
    movl    %eax, TABLES_TOP(%edi)

    movl    %cr4, %eax
    orl     $CR4_PAE, %eax
    movl    %eax, %cr4
    leal    TABLES_TOP(%edi), %eax
    movl    %eax, %cr3
    movl    $MSR_EFER, %ecx
    rdmsr
    orl     $EFER_LME, %eax
    wrmsr
    movl    %cr0, %eax
    orl     $CR0_PG, %eax
    andl    $~CR0_NO_CACHE, %eax
    movl    %eax, %cr0
    ljmpl   $CODE64, $long_mode

    .code64
long_mode:
    movl    %edi, %esi
    movl    %ebx, %edi
    leal    1(%rbx), %eax
    shll    $STACK_SHIFT, %eax
    leaq    stacks(%eax), %rsp
    call    run
1:  hlt
    jmp     1b

    .balign 8
gdt:
    .quad   0
    /* CODE32, DATA, CODE64 */
    .quad   0x00cf9b000000ffff
    .quad   0x00cf93000000ffff
    .quad   0x00af9b000000ffff
gdt_pointer:
    .word   . - gdt - 1
    .long   gdt

    .code16
    .section .reset, "ax"
    jmp     start

    .section .note.GNU-stack, "", @progbits

    .bss
    .globl tables
    .balign 4096
tables:
    .skip   CPUS * TABLES_SIZE
stacks:
    .skip   CPUS << STACK_SHIFT
