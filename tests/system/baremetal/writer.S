/*
 * Firmware that has the vCPU write to memory when asked to
 *
 * It sleeps, but for a moment every 2 ms. If it finds the mailbox's "run" set,
 * it increments a number in each of the places that a list names, in the order
 * of the list. So whenever the vCPU stops, any two of the numbers differ by one
 * at most, and not at all once it sleeps again.
 *
 * Mailbox and list are filled by whoever asks, as is the page directory for a
 * window of 1 GiB, through which the vCPU sees what it is to write to.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/* Where these are in memory: see tests/system/writer.py */
#define STACK           0x1000
#define RUN             0x1000
#define RUNNING         0x1004
#define COUNT           0x1008
#define ROUNDS          0x100c
#define WINDOW          0x2000
#define LIST            0x8000

/* Local APIC: end of interrupt, spurious interrupts, timer */
#define APIC_EOI        0xfee000b0
#define APIC_SPIV       0xfee000f0
#define APIC_TIMER      0xfee00320
#define APIC_COUNT      0xfee00380
#define APIC_DIVIDER    0xfee003e0

#define APIC_ENABLED    0x1ff
#define TIMER_PERIODIC  0x20000
#define DIVIDE_BY_1     0xb
/* Of a clock of 1 GHz, with KVM and TCG alike */
#define PERIOD          2000000
#define VECTOR          32

#define CR0_PE          0x1
#define CR0_PG          0x80000000
#define CR4_PAE         0x20
#define MSR_EFER        0xc0000080
#define EFER_LME        0x100

/* Present, writable, accessed, dirty: all that the vCPU would set in a ROM */
#define TABLE           0x63
#define LARGE_PAGE      0xe3

    /* Runs where the upper one of the BIOS areas below 1 MiB is. */
    .text
    .code64
    .globl _start
_start:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    cld
    movl $APIC_SPIV, %ebx
    movl $APIC_ENABLED, (%rbx)
    movl $APIC_TIMER, %ebx
    movl $(VECTOR + TIMER_PERIODIC), (%rbx)
    movl $APIC_DIVIDER, %ebx
    movl $DIVIDE_BY_1, (%rbx)
    movl $APIC_COUNT, %ebx
    movl $PERIOD, (%rbx)

sleep:
    movl $STACK, %esp
    sti
    hlt
    jmp sleep

    /* Without iret, which not all kinds of KVM emulate. */
interrupt:
    movl $APIC_EOI, %ebx
    movl $0, (%rbx)

    movl RUN, %eax
    cmpl %eax, RUNNING
    je known
    /* The window may show something else than the last time. */
    movq %cr3, %rbx
    movq %rbx, %cr3
    movl %eax, RUNNING
known:
    testl %eax, %eax
    jz sleep

    movl $LIST, %esi
    movl COUNT, %ecx
number:
    movl (%rsi), %eax
    incl (%rax)
    addl $4, %esi
    decl %ecx
    jnz number
    incl ROUNDS
    jmp sleep

    .balign 16
gdt:
    .quad 0
    /* With the bit "accessed" set */
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

    .balign 16
idt:
    .fill 2 * VECTOR, 8, 0
    .word interrupt - _start
    .word 8
    .word 0x8e00
    .word 0xf
    .quad 0
idt_end:
idt_pointer:
    .word idt_end - idt - 1
    .long idt

    .code16
real_mode:
    cli
    lgdtl %cs:gdt_pointer - _start
    lidtl %cs:idt_pointer - _start
    movl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $MSR_EFER, %ecx
    xorl %edx, %edx
    movl $EFER_LME, %eax
    wrmsr
    movl %cr0, %eax
    orl $(CR0_PE | CR0_PG), %eax
    movl %eax, %cr0
    ljmpl $8, $_start

    .balign 4096
pml4:
    .quad pdpt + TABLE
    .balign 4096
pdpt:
    .quad low + TABLE
    .quad WINDOW + TABLE
    .quad 0
    .quad high + TABLE
    .balign 4096
    /* The first GiB, and the one with the local APIC */
low:
    .set page, 0
    .rept 512
    .quad page + LARGE_PAGE
    .set page, page + 0x200000
    .endr
high:
    .set page, 0xc0000000
    .rept 512
    .quad page + LARGE_PAGE
    .set page, page + 0x200000
    .endr

    .org 0xfff0
    .byte 0xe9
    .word real_mode - (. + 2)
    .org 0x10000
