/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.invoices

import dev.tideline.core.Events
import dev.tideline.core.InMemoryStore
import dev.tideline.core.Moment
import dev.tideline.core.Money
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.Store
import dev.tideline.core.TideClock
import dev.tideline.core.TideEvent
import dev.tideline.core.change
import dev.tideline.core.ledger
import dev.tideline.core.onDone
import dev.tideline.core.requireThat
import dev.tideline.core.sumOfMoney
import dev.tideline.core.then
import dev.tideline.ships.ShipId

/** Identifies an invoice. */
@JvmInline
value class InvoiceId(val raw: String) {
    override fun toString(): String = raw
}

/** Bills a ship for one visit. */
data class Invoice(
    val id: InvoiceId,
    val ship: ShipId,
    val lines: List<TariffLine>,
    val dueAt: Moment,
    val paid: Money = Money.ZERO,
) {
    val total: Money get() = lines.map { it.amount }.sumOfMoney()
    val open: Money get() = total - paid
    val isSettled: Boolean get() = open <= Money.ZERO
}

/** Tells that an invoice was sent out. */
data class InvoiceIssued(val invoice: InvoiceId, val total: Money, override val at: Moment) : TideEvent

/** Tells that nothing is owed on an invoice any more. */
data class InvoiceSettled(val invoice: InvoiceId, override val at: Moment) : TideEvent

/** Keeps the invoices. */
interface InvoiceStore : Store<InvoiceId, Invoice> {
    /** Lists the invoices that are overdue at the moment, the oldest debt first. */
    fun listOverdue(moment: Moment): List<Invoice>
}

/** Keeps the invoices in memory. */
class InMemoryInvoiceStore : InMemoryStore<InvoiceId, Invoice>("invoice", Invoice::id), InvoiceStore {
    override fun listOverdue(moment: Moment): List<Invoice> =
        listWhere { !it.isSettled && it.dueAt < moment }.sortedBy { it.dueAt }
}

/** Writes invoices by the tariff and follows what is paid on them. */
class InvoiceWriter(
    private val invoices: InvoiceStore,
    private val tariff: Tariff,
    private val events: Events,
    private val clock: TideClock,
    private val payWithin: Span = Span.ofDays(14),
) {
    private val log = ledger<InvoiceWriter>()

    /** Issues the invoice for a visit. */
    fun issue(visit: Visit): Outcome<Invoice> =
        tariff.quote(visit)
            .then { lines ->
                invoices.add(
                    Invoice(
                        id = nextId(),
                        ship = visit.ship.id,
                        lines = lines,
                        dueAt = clock.now() + payWithin,
                    ),
                )
            }
            .onDone {
                log.note("invoice.issued", "invoice" to it.id, "total" to it.total)
                events.publish(InvoiceIssued(invoice = it.id, total = it.total, at = clock.now()))
            }

    /** Books a payment, or refuses it when it is more than what is open. */
    fun pay(id: InvoiceId, amount: Money): Outcome<Invoice> =
        requireThat(amount > Money.ZERO, Reason.INVALID) { "a payment of $amount is none" }
            .then { invoices.findById(id) }
            .then { invoice ->
                requireThat(amount <= invoice.open, Reason.CONFLICT) { "$id has only ${invoice.open} open" }
            }
            .then { invoices.change(id) { it.copy(paid = it.paid + amount) } }
            .onDone {
                log.note("invoice.paid", "invoice" to id, "amount" to amount, "open" to it.open)
                if (it.isSettled) events.publish(InvoiceSettled(id, clock.now()))
            }

    private fun nextId(): InvoiceId {
        val number = invoices.listAll().size + 1
        return InvoiceId("T${clock.now().day}-${number.toString().padStart(4, '0')}")
    }
}
