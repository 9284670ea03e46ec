/*
 * Print how many memslots KVM says that each address space of a VM can hold,
 * and how many address spaces there can be
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <linux/kvm.h>

static int check_extension(int kvm, unsigned long extension)
{
    int value = ioctl(kvm, KVM_CHECK_EXTENSION, extension);

    if (value < 0) {
        perror("KVM_CHECK_EXTENSION");
        exit(1);
    }
    return value;
}

int main(void)
{
    int kvm = open("/dev/kvm", O_RDWR);

    if (kvm < 0) {
        perror("/dev/kvm");
        return 1;
    }
    printf("%d %d\n", check_extension(kvm, KVM_CAP_NR_MEMSLOTS),
           check_extension(kvm, KVM_CAP_MULTI_ADDRESS_SPACE));
    return 0;
}
